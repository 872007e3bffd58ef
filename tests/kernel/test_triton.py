"""The Triton backend: its kernels interpreted and compiled for a GPU, and its availability.

No test here needs a GPU. On a GPU, `benchmarks/gpu.sh check` compares the kernels with the
reference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import backspike as bs

pytest.importorskip(
    "triton", reason="Triton is not installed; it comes with the dev extra on Linux x86-64"
)
TESTS = Path(__file__).parent


def run_interpreted(*command):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *command,
    ]
    done = subprocess.run(
        command, env=environment, cwd=TESTS.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_kernels_in_the_interpreter():
    assert " passed" in run_interpreted("-m", "not slow", str(TESTS / "interpreted_triton.py"))


def test_recurrent_layers_in_the_interpreter():
    file = TESTS / "interpreted_triton_recurrent.py"
    assert " passed" in run_interpreted("-m", "not slow", str(file))


@pytest.mark.slow
def test_all_recurrent_layers_in_the_interpreter():
    file = TESTS / "interpreted_triton_recurrent.py"
    assert " passed" in run_interpreted("-m", "slow", str(file))


@pytest.mark.slow
def test_all_cases_in_the_interpreter():
    assert " passed" in run_interpreted("-m", "slow", str(TESTS / "interpreted_triton.py"))


@pytest.mark.slow
def test_shared_backend_tests_in_the_interpreter():
    """The tests of all backends, run with this one."""
    files = [
        f"tests/{name}.py"
        for name in (
            "kernel/test_backends",
            "kernel/test_saved",
            "neuron/test_neuron",
            "test_surrogate",
        )
    ]
    assert " passed" in run_interpreted("-m", "not slow", "-k", "triton", *files)


def run_compiled(folder, *arguments):
    """The output of compiled_triton.py, a dict per kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": path}
    command = [sys.executable, str(TESTS / "compiled_triton.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_kernels(found):
    """No multiply-add is fused, except inside exp and divisions in the backward pass."""
    assert {k["kernel"] for k in found} == {"lif_fwd_kernel", "lif_bwd_kernel"}
    assert all(k["bytes"] > 1000 for k in found)
    assert not [
        k
        for k in found
        if k["kernel"] == "lif_fwd_kernel" and (k["ptx"] or k["sass"]) and "active" not in k["case"]
    ]
    assert not [k for k in found if k["ptx"] and "float64" not in k["case"]]
    # several elements per memory access
    assert all(k["wide"] for k in found if k["case"] == "bfloat16, tau 2")


def test_kernels_compile_for_a_gpu(tmp_path):
    """Machine code for compute capability 9.0 can be generated without a GPU."""
    check_kernels(run_compiled(tmp_path, "90", "separate", "few"))


@pytest.mark.slow
@pytest.mark.parametrize("sm", ["80", "90", "100"])
def test_all_variants_compile_for_several_gpus(tmp_path, sm):
    check_kernels(run_compiled(tmp_path, sm, "separate", "many"))


@pytest.mark.slow
@pytest.mark.parametrize("sm", ["80", "90"])
def test_recurrent_kernels_compile_for_several_gpus(tmp_path, sm):
    """And fit into the shared memory that every GPU of these years has, 99 KB."""
    found = run_compiled(tmp_path, sm, "separate", "recurrent")
    assert {k["kernel"] for k in found} == {"recurrent_fwd_kernel", "recurrent_bwd_kernel"}
    assert len(found) == 8
    assert all(k["shared"] <= 99 * 1024 for k in found)


@pytest.mark.slow
def test_fused_multiply_adds_are_detected(tmp_path):
    fused = run_compiled(tmp_path, "90", "fused", "few")
    assert all(k["ptx"] or k["sass"] for k in fused if k["kernel"] == "lif_fwd_kernel")


def test_triton_is_available_with_a_gpu_or_the_interpreter():
    """The environment variable enables it; without it and without a GPU, Triton is not imported."""
    ask = "import sys, backspike as bs; print(*bs.backends()); print('triton' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    answers = []
    for change in ({}, {"TRITON_INTERPRET": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", ask],
            env=environment | change,
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(done.stdout.split())
    if not torch.cuda.is_available():
        assert "triton" not in answers[0]
        assert answers[0][-1] == "False"
    assert "triton" in answers[1]


def test_an_unavailable_triton_backend_is_unknown():
    if "triton" in bs.backends():
        pytest.skip("the backend is available here")
    with pytest.raises(ValueError, match="unknown backend 'triton'; "):
        bs.lif(torch.rand(3, 2, 4), backend="triton")
