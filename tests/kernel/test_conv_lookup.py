"""Weight gradients that spikes look up, against float64 results and torch's bfloat16."""

import math

import pytest
import torch
from helpers.threads import on_threads

from backspike.kernel.cpu import conv_lookup, library, winograd
from backspike.kernel.cpu.conv import Events
from backspike.kernel.pack import pack

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
LAST = torch.channels_last
DTYPES = winograd.DTYPES
# images, input channels, output channels, height, width
SHAPES = {
    "whole blocks": (2, 64, 64, 8, 8),
    "rows of four": (40, 32, 48, 4, 4),
    "no multiple of anything": (3, 37, 70, 9, 11),
    "one channel, one pixel": (1, 1, 1, 1, 1),
    "thin": (2, 16, 33, 1, 30),
    "one column": (3, 18, 5, 23, 1),
    "many chunks of one image": (1, 20, 17, 50, 45),
    "many groups": (130, 16, 16, 8, 8),
    "an image larger than a group": (2, 3, 4, 96, 100),
}
# of the gradient, relative to its norm: a fifth of the error of bfloat16
BOUND = 3e-4


def draw(shape, dtype=torch.float32, density=0.3, seed=0):
    """Spikes, their Events, a weight and an output gradient with a few large values."""
    images, C, N, H, W = shape
    r = torch.Generator().manual_seed(seed)
    x = (torch.rand(images, C, H, W, generator=r) < density).float()
    x[0, 0, 0, 0] = 1
    g = torch.randn(images, N, H, W, generator=r) * torch.randn(images, N, H, W, generator=r).exp()
    return *of(x), torch.empty(N, C, 3, 3), g.to(dtype).contiguous(memory_format=LAST)


def of(x):
    x = x.contiguous(memory_format=LAST)
    packed = pack(x)
    return x, Events(packed.codes, packed.bits, x.shape)


def exact(x, weight, g):
    return torch.nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), padding=1)


def error(got, want):
    assert got.shape == want.shape
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_weight_gradient(name, dtype):
    for density in (0.02, 0.4, 1.0):
        x, events, weight, g = draw(SHAPES[name], dtype, density)
        got, want = conv_lookup.weight_gradient(events, g, weight, 5), exact(x, weight, g)
        assert got.dtype == torch.float32
        if want.numel() > 1000:  # else chance decides
            rounded = torch.nn.grad.conv2d_weight(
                x.bfloat16(), weight.shape, g.bfloat16(), padding=1
            )
            assert error(got, want) < BOUND < error(rounded, want) / 4
        else:
            assert error(got, want) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_of_weight_and_gradient(dtype):
    _, events, weight, g = draw(SHAPES["no multiple of anything"], dtype)
    want = conv_lookup.weight_gradient(events, g, weight, 5)
    odd = weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    for w in (weight.contiguous(memory_format=LAST), odd):
        got = conv_lookup.weight_gradient(events, g.contiguous(), w, 5)
        assert got.stride() == w.stride()
        assert torch.equal(got, want)


def test_no_images():
    _, events = of(torch.zeros(0, 3, 4, 4))
    got = conv_lookup.weight_gradient(events, torch.zeros(0, 5, 4, 4), torch.ones(5, 3, 3, 3), 0)
    assert torch.equal(got, torch.zeros(5, 3, 3, 3))


# --------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_over_seeds_is_the_exact_gradient(dtype):
    """Also of values far below a step, of which each is rounded to 0 or to a whole step."""
    x, events, weight, g = draw((2, 16, 16, 8, 8), dtype)
    g[0], g[1] = 1e-6, 3e-6
    g[:, :, 0, 0] = 1  # a step is 1 / 32,760
    g = g.contiguous(memory_format=LAST)
    x[:, :, 0:2, 0:2] = 0  # the large values meet no spikes
    _, events = of(x)
    want = exact(x, weight, g)
    runs = torch.stack(
        [conv_lookup.weight_gradient(events, g, weight, s).double() for s in range(400)]
    )
    spread = (runs - want).square().mean().sqrt()
    off = (runs.mean(0) - want).square().mean().sqrt()
    assert spread > 0.5 * want.square().mean().sqrt()
    assert off < 1.2 * spread / math.sqrt(len(runs))
    # what a whole channel has in common is kept
    assert error(runs[0].sum((1, 2, 3)), want.sum((1, 2, 3))) < 0.5
    assert abs(float(runs.mean() / want.mean()) - 1) < 0.02


def test_the_seed_decides_the_rounding():
    _, events, weight, g = draw(SHAPES["whole blocks"])
    once, again, other, high = (
        conv_lookup.weight_gradient(events, g, weight, seed) for seed in (1, 1, 2, 1 + 2**40)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, high)


# ----------------------------------------------------------------------------------- hard numbers


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shape", [(40, 64, 16, 4, 4), (2, 16, 17, 32, 32)], ids=str)
def test_the_largest_possible_sums_do_not_overflow(shape, sign):
    """Every pixel spikes, and all sums of four are as large as their scale allows."""
    x, events, weight, g = draw(shape, density=2.0)
    g[:] = sign * 0.7
    g[:, ::2] *= 1 + 1e-3
    got, want = conv_lookup.weight_gradient(events, g, weight, 5), exact(x, weight, g)
    assert error(got, want) < BOUND
    g[..., ::2] = 0
    assert error(conv_lookup.weight_gradient(events, g, weight, 5), exact(x, weight, g)) < BOUND


def test_a_large_value_spoils_nothing_far_from_it():
    x, events, weight, g = draw((2, 16, 16, 32, 32))
    g[0, 3, 2, 2] = 1000
    x[0, :, 0:8, 0:8] = 0
    _, events = of(x)
    got, want = conv_lookup.weight_gradient(events, g, weight, 5), exact(x, weight, g)
    assert error(got, want) < 2e-2
    others = [n for n in range(16) if n != 3]
    assert error(got[others], want[others]) < BOUND


def test_small_and_large_numbers():
    x, events, weight, g = draw(SHAPES["whole blocks"])
    for factor in (1e-25, 1e-10, 1e12):
        got = conv_lookup.weight_gradient(events, g * factor, weight, 5)
        assert error(got / factor, exact(x, weight, g)) < BOUND
    assert not conv_lookup.weight_gradient(events, 0 * g, weight, 5).any()
    assert conv_lookup.weight_gradient(events, g * 1e-38, weight, 5).abs().max() < 1e-30


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_refused(bad, dtype):
    for place in ((0, 0, 0, 0), (2, 69, 8, 10), (1, 5, 4, 4)):
        _, events, weight, g = draw(SHAPES["no multiple of anything"], dtype)
        g[place] = bad
        assert conv_lookup.weight_gradient(events, g, weight, 5) is None


def test_gradients_that_differ_too_much_are_refused():
    x, events, weight, g = draw((2, 16, 16, 32, 32))
    g = torch.randn(g.shape, generator=torch.Generator().manual_seed(1))
    for factor in (1, 100, 500, 5000, 1e6):
        g[1, 7, 5, 5] = factor
        got = conv_lookup.weight_gradient(events, g, weight, 5)
        assert (got is None) == (factor > 1000)
        assert got is None or error(got, exact(x, weight, g)) < BOUND
    g[1, 7] = 0
    g[1, 7, 5, 5] = 1e6  # alone in its channel
    assert error(conv_lookup.weight_gradient(events, g, weight, 5), exact(x, weight, g)) < BOUND


# ----------------------------------------------------------------------------- threads and levels


def results(dtype):
    return [
        conv_lookup.weight_gradient(events, g, weight, 5)
        for _, events, weight, g in (draw(shape, dtype) for shape in SHAPES.values())
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(conv_lookup, "_GRAIN", 1)
    first, *others = on_threads(lambda: results(dtype))
    assert all(torch.equal(a, b) for made in others for a, b in zip(made, first, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_processor_levels_give_the_same_bits(dtype, monkeypatch):
    want = results(dtype)
    for level in library.levels():
        for vnni in (True, False) if level == "v4" and winograd.has_vnni() else (False,):
            with library.level(level), monkeypatch.context() as patch:
                patch.setattr(conv_lookup, "has_vnni", lambda vnni=vnni: vnni)
                assert conv_lookup.available() == (level == "v4")
                assert all(torch.equal(a, b) for a, b in zip(results(dtype), want, strict=True))
