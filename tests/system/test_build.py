"""setup.py: an installation succeeds without a compiler and without the levels that fail."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or importlib.util.find_spec("setuptools") is None,
    reason="needs setuptools on Linux",
)
# writes empty files instead of compiling; fails if one of its arguments is REFUSED
COMPILER = """#!/bin/sh
for word; do [ "$word" = "REFUSED" ] && exit 1; done
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
exit 0
"""


def build(folder, compiler):
    """Runs setup.py and returns the names of the libraries that it made."""
    words = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    words += ["--build-temp", str(folder / "temp")]
    environment = {**os.environ, "CC": str(compiler), "LDSHARED": f"{compiler} -shared"}
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {path.name.split(".")[0] for path in (folder / "lib").rglob("*.so")}


@pytest.mark.parametrize("compiler", ["/bin/false", "/nonexistent/cc"])
def test_the_build_succeeds_without_a_compiler(tmp_path, compiler):
    assert build(tmp_path, compiler) == set()


@pytest.mark.parametrize(
    ("refused", "built"),
    [
        ("-none", {"_lif", "_lif_v3", "_lif_v4"}),
        ("-march=x86-64-v4", {"_lif", "_lif_v3"}),
        ("-march=x86-64-v3", {"_lif", "_lif_v4"}),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the levels are those of x86-64")
def test_a_level_that_fails_leaves_the_others(tmp_path, refused, built):
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER.replace("REFUSED", refused))
    compiler.chmod(0o755)
    assert build(tmp_path, compiler) == built


@pytest.mark.skipif(shutil.which("clang") is not None, reason="clang is installed")
def test_thread_sanitizer_is_skipped_without_clang():
    words = [str(ROOT / ".ci/sanitize"), "--thread"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ThreadSanitizer was skipped: it needs clang and libomp")
    assert done.stderr == ""
