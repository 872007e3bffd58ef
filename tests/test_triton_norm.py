"""The Triton kernels of BatchNorm, neuron and pool against the statements of test_norm.py, in Triton's interpreter; and
compiled for a GPU that is not there.

Whether kernels are interpreted is settled when they are imported, so this file runs itself once more in a process of its own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from test_cpu import LAYOUTS
from test_norm import CONSTANTS, SEED, Case, apart, assert_same, exact, gradients, make_call, make_norm, normal, per_channel

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid
from backspike.kernel.norm import norm_lif, refuses

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs where TRITON_INTERPRET=1")
run = partial(norm_lif, backend="triton")
SCALARS = {name: torch.tensor(v, dtype=torch.float64) for name, v in CONSTANTS.items()}
LAST = LAYOUTS["channels last"]


@pytest.mark.skipif(INTERPRETED, reason="it is the one that runs")
def test_in_the_interpreter():
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-1000:]
    assert "failed" not in said.stdout
    assert "passed" in said.stdout


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles for each program, and several programs, of small inputs."""
    if INTERPRETED:
        from backspike.kernel import triton_norm

        monkeypatch.setattr(triton_norm, "_TILE", 32)


CASES = {
    "masked, soft, average pool": (
        Case({"surrogate": Masked(ATan(alpha=3.0), p=0.4), "v_reset": None}, {}, pool="avg"),
        LAST,
        (2, 2, 3, 3, 5),
    ),
    "replaced, maximum pool": (
        Case({"surrogate": Masked(ATan(alpha=3.0), p=0.4, replace=Rectangle(1.5))}, {}, pool="max"),
        torch.Tensor.contiguous,
        (2, 2, 3, 3, 4),
    ),
    "running statistics, all per channel": (
        Case({"surrogate": Parametric(Sigmoid(alpha=3.0))}, per_channel(3), training=False, moments=True),
        LAST,
        (3, 2, 3, 4, 3),
    ),
    "repeated, all learned": (Case({"surrogate": Parametric(ATan(alpha=3.0))}, SCALARS, repeats=3), LAST, (1, 2, 5, 3, 3)),
    "vectors, not affine, space only": (
        Case({"temporal_gradient": False}, {}, affine=False),
        torch.Tensor.contiguous,
        (3, 7, 5),
    ),
}


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    case, arrange, shape = CASES[name]
    y, v0 = arrange(normal(shape, 7)), normal(shape[1:], 8).mul(0.3)
    assert refuses(make_call(y, v0, case.rule, case.learned), make_norm(shape[2]), "triton") is None
    want = gradients(apart, case, y.contiguous(), v0)
    assert 0 < want["spikes"].mean() < 1, "a case that shows nothing"
    assert_same(gradients(run, case, y, v0), want)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_spikes_are_exact(dtype):
    y = LAST(normal((3, 2, 3, 3, 5), 7)).to(dtype)
    norm = make_norm(3, dtype=torch.float32)
    call = make_call(y)
    spikes, state = exact(call, norm)
    got = run(call, norm)
    assert got.spikes.dtype == dtype
    assert torch.equal(got.spikes, spikes)
    assert torch.equal(got.state, state)


@interpreted
def test_what_is_added():
    y, add = LAST(normal((2, 2, 3, 2, 3), 7)), LAST(normal((2, 2, 3, 2, 3), 9)).requires_grad_()
    alone, norm = norm_lif(make_call(y), make_norm(3), backend="cpu").spikes, make_norm(3)
    joined = norm_lif(make_call(y.requires_grad_()), norm, backend="triton", add=add).spikes
    assert torch.equal(joined, alone + add)
    g = normal(joined.shape, 5)
    joined.backward(g)
    assert torch.equal(add.grad, g)
    assert y.grad.any()


@interpreted
def test_a_network_runs_them():
    """A residual network under this backend gives the logits, and the gradients, that it gives on the C kernels."""

    def outputs(backend):
        torch.manual_seed(0)
        neuron = lambda channels: bs.LIF(surrogate=Masked(ATan(), p=0.3), backend=backend)  # noqa: E731
        block = bs.models.residual.SEWBasic(2, 3, 2, neuron).double()
        x = normal((2, 2, 2, 4, 4), 3).sign().relu()
        torch.manual_seed(SEED)
        o = block(x)
        o.sum().backward()
        return [o.detach(), *(p.grad for p in block.parameters())]

    for got, want in zip(outputs("triton"), outputs("cpu")):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------- compiled, without a GPU


@dataclass
class _Compiler:
    """Compiles for an H100 and keeps the assembler."""

    ptx: list[str]

    def __call__(self, kernel, programs, **arguments):
        import triton
        from triton.backends.compiler import GPUTarget

        types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int64: "i64", torch.uint8: "u8"}
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
        self.ptx.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("pool", [None, "avg", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_compile_and_do_not_fuse(dtype, pool, monkeypatch):
    """All kernels of a training step become code for an H100, in which no product is fused with an addition."""
    from backspike.kernel import triton_norm

    compiler = _Compiler([])
    monkeypatch.setattr(triton_norm.lif, "_launch", compiler)
    rule = {"surrogate": Masked(ATan(), p=0.5)}
    call = make_call(LAST(normal((4, 8, 64, 4, 4), 1)).to(dtype).requires_grad_(), rule=rule)
    from backspike.kernel import norm

    add = None if pool else torch.zeros_like(call.x)
    result = norm._fused("triton", call, make_norm(64, dtype=torch.float32), pool, False, add)
    result.spikes.backward(torch.ones_like(result.spikes))
    assert len(compiler.ptx) == 5  # statistics, constants, forward, backward for the sums and for the gradient
    for ptx in compiler.ptx:
        assert "fma.rn.f32" not in ptx
        assert ".target sm_90" in ptx
