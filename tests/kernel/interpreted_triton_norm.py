"""The Triton kernels of BatchNorm, neuron and pool in Triton's interpreter.

They are compared with separate operators, as in test_norm.py. test_triton_norm.py runs this file
with TRITON_INTERPRET=1 in a separate process. The interpreter is slow, so only a few cases are
tested.
"""

from functools import partial

import pytest
import torch
from helpers.layouts import LAYOUTS
from helpers.norms import (
    CONSTANTS,
    SEED,
    Case,
    assert_same,
    exact_outputs,
    gradients,
    make_call,
    make_norm,
    normal,
    per_channel,
    run_separately,
)
from torch import nn

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid
from backspike.kernel.norm import norm_lif, refuses
from backspike.kernel.pack import pack
from backspike.kernel.triton import norm
from backspike.layers import synapse
from backspike.models.residual import SEWBasic

run = partial(norm_lif, backend="triton")
SCALARS = {name: torch.tensor(v, dtype=torch.float64) for name, v in CONSTANTS.items()}
LAST = LAYOUTS["channels last"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small inputs are divided into several programs with several tiles each."""
    monkeypatch.setattr(norm, "_TILE", 32)


CASES = {
    "masked, soft, average pool": (
        Case({"surrogate": Masked(ATan(alpha=3.0), p=0.4), "v_reset": None}, {}, pool="avg"),
        LAST,
        (2, 2, 3, 3, 3),
    ),
    "replaced, maximum pool": (
        Case({"surrogate": Masked(ATan(alpha=3.0), p=0.4, replace=Rectangle(1.5))}, {}, pool="max"),
        torch.Tensor.contiguous,
        (2, 2, 2, 3, 4),
    ),
    "running statistics, all per channel": (
        Case(
            {"surrogate": Parametric(Sigmoid(alpha=3.0))},
            per_channel(3),
            training=False,
            moments=True,
        ),
        LAST,
        (2, 2, 3, 3, 4),
    ),
    "repeated, all learned": (
        Case({"surrogate": Parametric(ATan(alpha=3.0))}, SCALARS, repeats=3),
        LAST,
        (1, 2, 3, 3, 3),
    ),
    "vectors, not affine, space only": (
        Case({"temporal_gradient": False, "v_threshold": 0.4}, {}, affine=False),
        torch.Tensor.contiguous,
        (3, 7, 5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_separate_operators(name):
    case, to_layout, shape = CASES[name]
    y, v0 = to_layout(normal(shape, 7)), normal(shape[1:], 8).mul(0.3)
    assert refuses(make_call(y, v0, case.rule, case.learned), make_norm(shape[2]), "triton") is None
    want = gradients(run_separately, case, y.contiguous(), v0)
    assert 0 < want["spikes"].mean() < 1, "a case that shows nothing"
    assert_same(gradients(run, case, y, v0), want)


@pytest.mark.parametrize(
    ("order", "pool"), [((1, 0, 2, 3), None), ((2, 3, 0, 1), "max"), ((0, 1, 3, 2), "avg")], ids=str
)
def test_any_order_of_dimensions_in_memory(order, pool):
    """[B, C, H, W] with the dimensions in this order, outermost first."""
    y, v0 = normal((2, 2, 3, 3, 4), 7), normal((2, 3, 3, 4), 8).mul(0.3)
    back = [0, *(1 + order.index(d) for d in range(4))]
    in_layout = y.permute(0, *(1 + d for d in order)).contiguous().permute(back)
    assert torch.equal(in_layout, y)
    assert not in_layout.is_contiguous()
    case = Case({"surrogate": Masked(ATan(alpha=3.0), p=0.4)}, {}, pool=pool)
    assert_same(gradients(run, case, in_layout, v0), gradients(run_separately, case, y, v0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_spikes_are_exact(dtype):
    y = LAST(normal((2, 2, 3, 3, 4), 7)).to(dtype)
    norm = make_norm(3, training=False, dtype=torch.float32)
    call = make_call(y)
    spikes, state = exact_outputs(call, norm)
    got = run(call, norm)
    assert got.spikes.dtype == dtype
    assert torch.equal(got.spikes, spikes)
    assert torch.equal(got.state, state)


@pytest.mark.parametrize("pool", [None, "avg", "max"])
def test_nan_and_infinity_become_spikes_of_nan(pool):
    y, norm = LAST(normal((2, 2, 3, 4, 5), 7)), make_norm(3, training=False)
    y[0, 1, 1, 2, 3], y[1, 0, 2, 0, 0] = float("inf"), float("nan")
    got, want = (
        norm_lif(make_call(y), norm, pool, backend=backend).spikes
        for backend in ("triton", "reference")
    )
    assert want.isnan().any()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_addition_to_the_spikes():
    y, add = LAST(normal((2, 2, 3, 2, 3), 7)), LAST(normal((2, 2, 3, 2, 3), 9)).requires_grad_()
    spikes, norm = norm_lif(make_call(y), make_norm(3), backend="cpu").spikes, make_norm(3)
    total = norm_lif(make_call(y.requires_grad_()), norm, backend="triton", add=add).spikes
    assert torch.equal(total, spikes + add)
    g = normal(total.shape, 5)
    total.backward(g)
    assert torch.equal(add.grad, g)
    assert y.grad.any()


@pytest.mark.parametrize(
    ("pool", "shape"),
    [(None, (2, 2, 24, 2, 3)), ("max", (2, 3, 8, 5, 4)), (None, (3, 7, 8))],
    ids=str,
)
def test_spikes_are_also_returned_as_bits(pool, shape):
    """In memory order, as pack.c packs them."""
    y = normal(shape, 7)
    y = LAST(y) if len(shape) == 5 else y
    result = run(make_call(y.requires_grad_(), record_bits=True), make_norm(shape[2]), pool)
    spikes = result.spikes.detach()
    assert 0 < spikes.mean() < 1
    assert torch.equal(result.bits, pack(spikes).codes)


@pytest.mark.parametrize("why", ["average pool", "channels", "layout", "added"])
def test_bits_are_not_returned_where_unsupported(why):
    shape = (2, 2, 8 if why != "channels" else 6, 2, 2)
    y = (torch.Tensor.contiguous if why == "layout" else LAST)(normal(shape, 7)).requires_grad_()
    add = LAST(normal(shape, 8)) if why == "added" else None
    pool = "avg" if why == "average pool" else None
    assert run(make_call(y, record_bits=True), make_norm(shape[2]), pool, add=add).bits is None


def test_the_next_convolution_saves_the_bits(monkeypatch):
    """After max pools, after neurons and in a residual block; gradients match the C kernels."""
    got_bits, pack_ = [], synapse._pack
    monkeypatch.setattr(
        synapse,
        "_pack",
        lambda x, dtype, bits: (got_bits.append(bits is not None), pack_(x, dtype, bits))[1],
    )

    def gradients_of(backend):
        torch.manual_seed(0)

        def neuron(channels=None):
            return bs.LIF(v_threshold=0.3, surrogate=Masked(ATan(), p=0.3), backend=backend)

        model = bs.Sequential(
            *(
                bs.OverTime(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)),
                neuron(),
                bs.OverTime(nn.MaxPool2d(2)),
            ),
            *(
                bs.OverTime(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
                neuron(),
                SEWBasic(8, 8, 1, neuron),
            ),
            *(
                bs.OverTime(nn.Conv2d(8, 8, 2), nn.BatchNorm2d(8)),
                neuron(),
                bs.OverTime(nn.Flatten(), nn.Linear(8, 16)),
            ),
            *(neuron(), nn.Linear(16, 3)),
        )
        model = model.double().to(memory_format=torch.channels_last)
        torch.manual_seed(SEED)
        model(LAST(normal((2, 2, 2, 4, 4), 3))).sum().backward()
        return [p.grad for p in model.parameters()]

    for got, want in zip(gradients_of("triton"), gradients_of("cpu"), strict=True):
        assert want.any()
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    # the first convolution reads no spikes, and there are no bits after an addition or from C
    assert got_bits == [False, True, False, True, False, True, True] + [False] * 7


def test_a_residual_block_matches_the_c_kernels():
    """The outputs and the gradients of a residual block match those of the C kernels."""

    def outputs(backend):
        torch.manual_seed(0)
        neuron = lambda channels: bs.LIF(surrogate=Masked(ATan(), p=0.3), backend=backend)  # noqa: E731
        block = SEWBasic(2, 3, 2, neuron).double()
        x = normal((2, 2, 2, 3, 3), 3).sign().relu()
        torch.manual_seed(SEED)
        o = block(x)
        o.sum().backward()
        return [o.detach(), *(p.grad for p in block.parameters())]

    for got, want in zip(outputs("triton"), outputs("cpu")):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
