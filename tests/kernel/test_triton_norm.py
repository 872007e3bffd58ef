"""The Triton kernels of BatchNorm, neuron and pool, interpreted and compiled for a GPU.

The interpreter runs in a separate process, because Triton decides on import whether to use it. No
GPU is needed.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.layouts import LAYOUTS
from helpers.norms import make_call, make_norm, normal, per_channel

from backspike import ATan, Masked, Parametric

pytest.importorskip("triton")


def test_kernels_in_the_interpreter():
    file = Path(__file__).with_name("interpreted_triton_norm.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "failed" not in done.stdout
    assert "passed" in done.stdout


# -------------------------------------------------------------------------- compiled, without a GPU


@dataclass
class _Compiler:
    """Compiles kernels for an H100 and collects the PTX code."""

    ptx: list[str]

    def __call__(self, kernel, grid, **arguments):
        arguments |= {"ROWS": grid.rows, "COLUMNS": grid.columns}
        import triton
        from triton.backends.compiler import GPUTarget

        types = {
            torch.float32: "fp32",
            torch.bfloat16: "bf16",
            torch.float64: "fp64",
            torch.int64: "i64",
            torch.uint8: "u8",
        }
        signature, constants = {}, {}
        flags = {p.name for p in kernel.params if p.is_constexpr}
        for name in kernel.arg_names:
            value = arguments[name]
            if isinstance(value, torch.Tensor):
                signature[name] = f"*{types[value.dtype]}"
            elif name in flags or value is None:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        self.ptx.append(
            triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["added", "bits", "avg", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_compile_without_fused_multiply_adds(dtype, what, monkeypatch):
    """All kernels of a training step compile for an H100 without fused multiply-adds."""
    from backspike.kernel import norm as fused
    from backspike.kernel.triton import norm

    compiler = _Compiler([])
    monkeypatch.setattr(norm.lif, "launch", compiler)
    rule = {"surrogate": Masked(ATan(), p=0.5)}
    y = LAYOUTS["channels last"](normal((4, 8, 64, 4, 4), 1)).to(dtype).requires_grad_()
    call = make_call(y, rule=rule, record_bits=True)
    add, pool = (
        torch.zeros_like(call.x) if what == "added" else None,
        what if what in ("avg", "max") else None,
    )
    result = fused._fused("triton", call, make_norm(64, dtype=torch.float32), pool, False, add)
    assert (result.bits is not None) == (what in ("bits", "max"))
    result.spikes.backward(torch.ones_like(result.spikes))
    # statistics, constants, forward, backward for the sums and for the gradient
    assert len(compiler.ptx) == 5
    for ptx in compiler.ptx:
        assert "fma.rn.f32" not in ptx
        assert ".target sm_90" in ptx


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_kernels_compile_with_all_flags(training, monkeypatch):
    """Constants learned per channel, v0, moments, repeats and a gradient of every output."""
    from backspike.kernel import norm as fused
    from backspike.kernel.triton import norm

    compiler = _Compiler([])
    monkeypatch.setattr(norm.lif, "launch", compiler)
    shape = (1, 3, 40, 3, 5)
    y, learned = (
        normal(shape, 1).float().requires_grad_(),
        {k: v.requires_grad_() for k, v in per_channel(40).items()},
    )
    rule = {"surrogate": Masked(Parametric(ATan()), p=0.5, rescale=True)}
    call = make_call(
        y,
        normal(shape[1:], 2).float().requires_grad_(),
        rule,
        learned,
        repeats=3,
        record_moments=True,
    )
    result = fused._fused("triton", call, make_norm(40, training, dtype=torch.float32), None, True)
    torch.autograd.backward(
        [result.spikes, result.state, *result.moments[:2]],
        [torch.ones_like(o) for o in (result.spikes, result.state, *result.moments[:2])],
    )
    assert len(compiler.ptx) == (5 if training else 3)
