"""The oldest and the newest versions of the dependencies in pyproject.toml, in new environments."""

import os
import re
import subprocess
import sys
import venv

import pytest
from helpers.paths import ROOT

tomllib = pytest.importorskip("tomllib")  # Python 3.11

PART = (
    "tests/train/test_golden_run.py",
    "tests/data/test_batches.py",
    "tests/data/test_formats.py",
    "tests/neuron/test_arguments.py",
    "tests/report/test_report.py",
    "tests/system/test_table.py",
)


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["events"], *extras["nir"]]


def pip(python, *words):
    command = [python, "-m", "pip", *words, "--disable-pip-version-check", "--quiet"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def check_part(python):
    """Runs a part of the tests. Old libraries warn of what they use of new ones."""
    words = ["-q", "-m", "not slow", "-W", "ignore::DeprecationWarning", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [str(python), "-m", "pytest", *words, *PART],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_every_dependency_declares_its_oldest_version():
    assert all(re.fullmatch(r"[a-z0-9]+>=[0-9.]+", text) for text in declared())


@pytest.mark.slow
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_a_part_of_the_tests_passes_with(which, tmp_path):
    if which == "oldest" and sys.version_info >= (3, 12):
        pytest.skip("the oldest numpy has no wheel for this Python; use 3.10 or 3.11")
    probe = pip(sys.executable, "download", "--no-deps", "--dest", tmp_path / "probe", "packaging")
    if probe.returncode:
        pytest.skip("no package index")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = declared()
    if which == "oldest":
        wanted = [text.replace(">=", "==") for text in wanted]
    done = pip(python, "install", *wanted, "pytest", "hypothesis")
    assert done.returncode == 0, done.stderr[-2000:]
    check_part(python)
