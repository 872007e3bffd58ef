"""Own neurons in Triton, interpreted, and compiled for a GPU, of which none is needed.

Both run in processes of their own, because Triton decides on import whether to interpret kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from helpers.own_neurons import SHIPPED

TESTS = Path(__file__).parent


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(which):
    file = TESTS / "interpreted_triton_own.py"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            which,
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            str(file),
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


def test_kernels_compile_for_a_gpu(tmp_path):
    """For compute capability 9.0, with no fused multiply-add."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    paths = [str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(TESTS / "compiled_triton_own.py")],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 2 * (3 + len(SHIPPED))
    assert {k["kernel"] for k in found} == {"own_forward", "own_backward"}
    assert all(k["bytes"] > 1000 for k in found)
    assert not [k for k in found if k["ptx"]]
