"""The gradient of the weight by Winograd's algorithm, against float64 results."""

import pytest
import torch
from helpers.threads import on_threads
from helpers.winograd import SHAPES, draw, error
from torch.nn.grad import conv2d_weight

from backspike.kernel.cpu import library, winograd

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
# relative to the root mean square: 32 units of float32
BOUND = 4e-6


def operands(name, dtype=torch.float32):
    x, weight, _, g = draw(SHAPES[name], dtype)
    return x, g, weight.shape


@pytest.mark.parametrize("dtype", winograd.DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_gradient(name, dtype):
    x, g, shape = operands(name, dtype)
    got = winograd.weight_gradient(x, g)
    assert got.dtype == torch.float32
    assert error(got, conv2d_weight(x.double(), shape, g.double(), padding=1)) < BOUND


def test_sums_of_many_tiles_are_as_exact():
    """8,192 of them, in 256 chunks; one sum after the other would lose 8e-6."""
    r = torch.Generator().manual_seed(1)
    x, g = torch.rand(128, 16, 32, 32, generator=r), torch.randn(128, 8, 32, 32, generator=r)
    want = conv2d_weight(x.double(), (8, 16, 3, 3), g.double(), padding=1)
    assert error(winograd.weight_gradient(x, g), want) < BOUND


def test_every_tap_of_every_pixel():
    """One input pixel at a time, beside gradients that are all different."""
    H, W = 6, 9
    for place in range(H * W):
        h, w = divmod(place, W)
        x, g = torch.zeros(1, 2, H, W), torch.zeros(1, 3, H, W)
        x[0, 1, h, w] = 1
        g[0, 2] = torch.arange(H * W).view(H, W) + 1
        want = conv2d_weight(x.double(), (3, 2, 3, 3), g.double(), padding=1)
        got = winograd.weight_gradient(x, g).double()
        assert torch.allclose(got, want, rtol=0, atol=1e-4)
        assert not got[:2].any()
        assert not got[:, 0].any()


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_layouts_of_input_and_gradient(dtype):
    x, g, _ = operands("no multiple of anything", dtype)
    want = winograd.weight_gradient(x, g)
    assert torch.equal(winograd.weight_gradient(x.contiguous(), g.contiguous()), want)
    part = torch.cat([x, x], 1)[:, : x.shape[1]]
    assert torch.equal(winograd.weight_gradient(part, g), want)
    same = g[:1].expand(len(g), -1, -1, -1)
    want = winograd.weight_gradient(x, same.clone())
    assert torch.equal(winograd.weight_gradient(x, same), want)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6, 6), (2, 0, 5, 6, 6), (2, 4, 0, 6, 6)])
def test_nothing_to_add(shape):
    images, C, N, H, W = shape
    got = winograd.weight_gradient(torch.zeros(images, C, H, W), torch.zeros(images, N, H, W))
    assert torch.equal(got, torch.zeros(N, C, 3, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_numbers_that_are_not_finite_are_refused(bad, dtype):
    for place in ((0, 0, 0, 0), (2, 36, 8, 10), (1, 5, 4, 4)):
        for which in range(2):
            pair = operands("no multiple of anything", dtype)[:2]
            pair[which][place] = bad
            assert winograd.weight_gradient(*pair) is None
    x, g, _ = operands("no multiple of anything")
    assert winograd.weight_gradient(x * 1e30, g * 1e30) is None


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(winograd, "_GRAIN", 1)
    first, *others = on_threads(
        lambda: [winograd.weight_gradient(*operands(name, dtype)[:2]) for name in SHAPES]
    )
    assert all(torch.equal(a, b) for made in others for a, b in zip(made, first, strict=True))


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_all_processor_levels_agree(dtype):
    """AVX-512 and AVX2 give the same bits; without fused multiply-add, sums round differently."""
    results = {}
    for level in library.levels():
        with library.level(level):
            results[level] = [winograd.weight_gradient(*operands(n, dtype)[:2]) for n in SHAPES]
    baseline = results.pop("baseline")
    for other in results.values():
        assert all(torch.equal(a, b) for a, b in zip(other, next(iter(results.values()))))
        assert all(error(a, b.double()) < BOUND for a, b in zip(other, baseline))
