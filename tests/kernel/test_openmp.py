"""openmp.c: loops run every iteration once, on any number of threads, callers and after a fork."""

import shutil
import subprocess
import sys

import pytest
from helpers.paths import ROOT, TESTS

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc on Linux"
)
CSRC = ROOT / "src/backspike/kernel/csrc"


@pytest.mark.parametrize("flag", ["-O2", "-fsanitize=thread"])
def test_every_iteration_runs_once(flag, tmp_path):
    program = tmp_path / "test"
    words = ["gcc", "-g", flag, "-pthread", f"-I{CSRC}", str(TESTS / "kernel/openmp_test.c")]
    subprocess.run([*words, "-o", str(program)], check=True)
    environment = {"TSAN_OPTIONS": "die_after_fork=0"}  # the forked process starts new threads
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
