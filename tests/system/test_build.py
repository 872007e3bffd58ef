"""setup.py: libraries for each platform, without a compiler or what it lacks; and the wheel."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers.paths import ROOT

from backspike.version import __version__

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or importlib.util.find_spec("setuptools") is None,
    reason="needs setuptools on Linux",
)
X86 = {"_lif", "_lif_v3", "_lif_v4"}
# Writes its arguments to the log and empty files instead of compiling; fails if REFUSED matches
# the arguments.
COMPILER = """#!/bin/sh
case " $* " in REFUSED) exit 1;; esac
echo "$@" >> LOG
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
exit 0
"""


@pytest.fixture
def compiler(tmp_path):
    """A compiler that refuses arguments that match a pattern of the shell, and its log."""

    def make(refused):
        path, log = tmp_path / "cc", tmp_path / "log"
        path.write_text(COMPILER.replace("REFUSED", refused).replace("LOG", str(log)))
        path.chmod(0o755)
        return path, log

    return make


def build(folder, compiler, target=""):
    """Runs setup.py and returns the names of the libraries that it made."""
    words = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    words += ["--build-temp", str(folder / "temp")]
    environment = {**os.environ, "CC": str(compiler), "BACKSPIKE_PLATFORM": target}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name for path in (folder / "lib").rglob("*") if path.is_file()}


@pytest.mark.parametrize("compiler_", ["/bin/false", "/nonexistent/cc"])
def test_the_build_succeeds_without_a_compiler(tmp_path, compiler_):
    assert build(tmp_path, compiler_) == set()


@pytest.mark.parametrize(
    ("refused", "built"),
    [
        ("-none", X86),
        ("*-march=x86-64-v4*", {"_lif", "_lif_v3"}),
        ("*-march=x86?64?v3*", {"_lif", "_lif_v4"}),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the levels are those of x86-64")
def test_a_level_that_fails_leaves_the_others(tmp_path, compiler, refused, built):
    assert build(tmp_path, compiler(refused)[0]) == {f"{name}.so" for name in built}


@pytest.mark.parametrize(
    ("target", "ending", "built"),
    [
        ("win_amd64", ".dll", X86),
        ("manylinux_2_17_x86_64", ".so", X86),
        ("linux_aarch64", ".so", {"_lif"}),
        ("macosx_11_0_arm64", ".dylib", {"_lif"}),
        ("macosx_11_0_x86_64", ".dylib", X86),
    ],
)
def test_each_platform_has_its_files(tmp_path, compiler, target, ending, built):
    assert build(tmp_path, compiler("-none")[0], target) == {name + ending for name in built}


def test_for_another_machine_a_library_that_fails_is_an_error(tmp_path, compiler):
    path, _ = compiler("*-march=x86-64-v4*")
    with pytest.raises(AssertionError, match="_lif_v4 could not be compiled"):
        build(tmp_path, path, "win_amd64")


@pytest.mark.parametrize(
    ("refused", "compiled", "linked"),
    [
        ("-none", {"-fopenmp", "-fno-thread-jumps", "-fPIC"}, {"-fopenmp"}),
        ("*-fno-thread-jumps*", {"-fopenmp", "-fPIC"}, {"-fopenmp"}),
        ("*-fPIC*", {"-fopenmp", "-fno-thread-jumps"}, {"-fopenmp"}),
        ("*-fopenmp*", {"-fno-thread-jumps", "-fPIC"}, set()),
        # as clang without a runtime: openmp.c takes its place
        ('*" -fopenmp -W"*', {"-fopenmp", "-DOWN_OPENMP", "-fno-thread-jumps", "-fPIC"}, set()),
    ],
)
def test_flags_that_the_compiler_lacks_are_left_out(tmp_path, compiler, refused, compiled, linked):
    path, log = compiler(refused)
    assert build(tmp_path, path, "linux_aarch64") == {"_lif.so"}
    lines = [line.split() for line in log.read_text().splitlines()]
    optional = {"-fopenmp", "-DOWN_OPENMP", "-fno-thread-jumps", "-fPIC"}
    objects = [line for line in lines if any(word.endswith("/lif.c") for word in line)]
    assert [optional & set(line) for line in objects] == [compiled]
    assert [optional & set(line) for line in lines if "-shared" in line] == [linked]


@pytest.mark.parametrize(
    ("compiler", "text"),
    [("/bin/false", "_lif could not be compiled and is left"), ("/no", "there is no C compiler")],
)
def test_without_a_compiler_the_build_names_the_cure(tmp_path, compiler, text):
    words = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path]
    done = subprocess.run(
        [*words, "--build-temp", tmp_path],
        cwd=ROOT,
        env=os.environ | {"CC": compiler},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if text in line]
    assert line.endswith("; install gcc or clang, or name one with CC=, and install again")


def test_thread_sanitizer_without_clang_names_what_it_needs():
    done = subprocess.run(
        [str(ROOT / ".ci/sanitize"), "--thread"],
        env=os.environ | {"CLANG": "no-such-clang"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ThreadSanitizer needs a recent clang with libomp" in done.stdout + done.stderr


# ---------------------------------------------------------------------------------------- the wheel

# what a network computes: the same in the checkout and from the wheel
PROGRAM = """
import hashlib, json, torch
import backspike as bs
from backspike.kernel.cpu import library

torch.set_num_threads(2)
x = torch.linspace(-1, 3, 4 * 64 * 300).view(4, 64, 300)
spikes = bs.LIF()(x)
opened = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line}
print(json.dumps({
    "file": bs.__file__,
    "explain": bs.explain(bs.LIF()),
    "levels": library.levels(),
    "spikes": hashlib.sha256(spikes.numpy().tobytes()).hexdigest(),
    "fired": int(spikes.sum()),
    "gomp": sorted(opened),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that was built from an sdist; BACKSPIKE_WHEEL names one that is tested instead."""
    if given := os.environ.get("BACKSPIKE_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "src/backspike/py.typed"} <= names
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= names  # sources, headers, data and templates
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    words += ["--wheel-dir", str(folder), str(sdist)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_serves_every_python_and_holds_everything(wheel):
    name, version, python, abi, _ = wheel.stem.split("-")
    assert (name, version, python, abi) == ("backspike", __version__, "py3", "none")
    names = set(zipfile.ZipFile(wheel).namelist())
    kernels = {Path(n).name for n in names if Path(n).suffix in (".so", ".dll", ".dylib", ".pdb")}
    assert kernels == {f"{level}.so" for level in (X86 if "x86_64" in wheel.name else {"_lif"})}
    assert f"backspike-{version}.dist-info/licenses/LICENSE" in names
    package = ROOT / "src/backspike"
    files = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in (".c", ".h", ".so")
    }
    assert files - names == set()


@pytest.mark.slow
def test_the_wheel_trains_in_an_environment_without_a_compiler(wheel, tmp_path):
    """torch and the other dependencies are those of this environment."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin/python"
    site = next(environment.glob("lib/python*/site-packages"))
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    paths = {"PATH": str(environment / "bin"), "HOME": str(tmp_path)}  # without PYTHONPATH
    words += ["--no-index", str(wheel)]
    subprocess.run(words, env=paths, check=True, capture_output=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def run(*words, **more):
        done = subprocess.run(
            words, env={**paths, **more}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    installed = json.loads(run(str(python), "-c", PROGRAM))
    checkout = json.loads(run(sys.executable, "-c", PROGRAM, PYTHONPATH=str(ROOT / "src")))
    assert installed.pop("file").startswith(str(site))
    assert checkout.pop("file").startswith(str(ROOT))
    assert installed == checkout
    assert "cpu" in installed["explain"]
    assert installed["fired"] > 0
    assert len(installed["gomp"]) == 1  # torch's own
    words = ["train", "digits", "--epochs", "1", "--out", "run"]
    run(str(environment / "bin/backspike"), *words)
    assert (tmp_path / "run/report.html").exists()
