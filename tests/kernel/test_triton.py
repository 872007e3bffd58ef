"""The Triton backend: its kernels in Triton's interpreter, the same kernels compiled for a GPU, and where it is offered.

No test here needs a GPU; on one, `benchmarks/gpu.sh check` holds the kernels to the reference.
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


def interpreted(*words):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *words,
    ]
    done = subprocess.run(
        words, env=environment, cwd=TESTS.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_in_the_interpreter():
    assert " passed" in interpreted("-m", "not slow", str(TESTS / "interpreted_triton.py"))


@pytest.mark.slow
def test_in_the_interpreter_with_patience():
    assert " passed" in interpreted("-m", "slow", str(TESTS / "interpreted_triton.py"))


@pytest.mark.slow
def test_what_every_backend_is_held_to():
    """The shared tests that name their backend, with this one."""
    files = [
        f"tests/{name}.py"
        for name in (
            "kernel/test_backends",
            "kernel/test_saved",
            "neuron/test_neuron",
            "test_surrogate",
        )
    ]
    assert " passed" in interpreted("-m", "not slow", "-k", "triton", *files)


def compiled(folder, *arguments):
    """What compiled_triton.py found, a dict per kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(TESTS.parent)}
    words = [sys.executable, str(TESTS / "compiled_triton.py"), *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found):
    """No multiply-add was fused: nowhere in the forward pass, nor in the backward pass but inside exp and a division."""
    assert {k["kernel"] for k in found} == {"lif_fwd_kernel", "lif_bwd_kernel"}
    assert all(k["bytes"] > 1000 for k in found)
    assert not [
        k
        for k in found
        if k["kernel"] == "lif_fwd_kernel" and (k["ptx"] or k["sass"]) and "active" not in k["case"]
    ]
    assert not [k for k in found if k["ptx"] and "float64" not in k["case"]]
    assert all(
        k["wide"] for k in found if k["case"] == "bfloat16, tau 2"
    )  # several elements per access


def test_kernels_compile_for_a_gpu(tmp_path):
    """To machine code for compute capability 9.0, on any machine."""
    check(compiled(tmp_path, "90", "apart", "few"))


@pytest.mark.slow
@pytest.mark.parametrize("sm", ["80", "90", "100"])
def test_kernels_compile_for_gpus_in_every_form(tmp_path, sm):
    check(compiled(tmp_path, sm, "apart", "many"))


@pytest.mark.slow
def test_fused_multiply_adds_would_be_seen(tmp_path):
    fused = compiled(tmp_path, "90", "fused", "few")
    assert all(k["ptx"] or k["sass"] for k in fused if k["kernel"] == "lif_fwd_kernel")


def test_it_is_offered_where_there_is_a_gpu_or_the_interpreter():
    """Here, by the environment alone; and its absence does not bring Triton in."""
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


def test_without_it_its_name_is_unknown():
    if "triton" in bs.backends():
        pytest.skip("here it is")
    with pytest.raises(ValueError, match="unknown backend 'triton'; here there are: auto, "):
        bs.lif(torch.rand(3, 2, 4), backend="triton")
