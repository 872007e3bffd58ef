"""Convolutions by Winograd's algorithm, against float64 results and torch's bfloat16."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.threads import on_threads
from helpers.winograd import SHAPES, draw, error
from torch import nn

from backspike.kernel.cpu import library, winograd

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
LAST = torch.channels_last
# of results in float32, relative to the root mean square: five times the unit of 14 bits
BOUND = 1.2e-3


def exact(x, weight, bias, g):
    x, weight, bias, g = (a.double() for a in (x, weight, bias, g))
    y = F.conv2d(x, weight, bias, padding=1)
    return y, nn.grad.conv2d_input(x.shape, weight, g, padding=1)


def both(x, weight, bias, g):
    return winograd.convolve(x, weight, bias), winograd.input_gradient(g, weight)


@pytest.mark.parametrize("dtype", winograd.DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_input_gradient(name, dtype):
    x, weight, bias, g = draw(SHAPES[name], dtype)
    wants = exact(x, weight, bias, g)
    bfloat16 = exact(x.bfloat16(), weight.bfloat16(), bias, g.bfloat16())
    for got, want, rounded in zip(both(x, weight, bias, g), wants, bfloat16):
        assert (got.dtype, got.is_contiguous(memory_format=LAST)) == (dtype, True)
        if dtype == torch.float32:
            assert error(got, want) < BOUND
        elif want.numel() > 1000:  # else chance decides
            assert error(got, want) < 1.02 * error(rounded.bfloat16(), want)


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_layouts_of_input_weight_and_gradient(dtype):
    x, weight, bias, g = draw(SHAPES["no multiple of anything"], dtype)
    want = both(x, weight, bias, g)
    odd = weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    for w in (weight.contiguous(memory_format=LAST), odd):
        for a, b in zip(both(x.contiguous(), w, bias, g.contiguous()), want):
            assert torch.equal(a, b)
    assert torch.equal(winograd.convolve(x, weight), winograd.convolve(x, weight, 0 * bias))


def test_empty_inputs():
    weight, bias = torch.randn(5, 3, 3, 3), torch.randn(5)
    assert winograd.convolve(torch.zeros(0, 3, 4, 4), weight, bias).shape == (0, 5, 4, 4)
    y = winograd.convolve(torch.zeros(2, 0, 4, 4), torch.zeros(5, 0, 3, 3), bias)
    assert torch.equal(y, bias.view(5, 1, 1).expand(2, 5, 4, 4))


# ---------------------------------------------------------------------------------- hard numbers


@pytest.mark.parametrize("C", [64, 200])
@pytest.mark.parametrize("position", list(itertools.product((0, 1, 3), repeat=2)), ids=str)
def test_the_largest_possible_sums_do_not_overflow(position, C):
    """Every channel has the signs of two rows of B', so that all transformed inputs are largest."""
    rows = {
        0: [81 / 64, 0, -45 / 16, 0, 1, 0],
        1: [0, -27 / 16, -9 / 4, 3 / 4, 1, 0],
        3: [0, -27 / 32, -9 / 16, 3 / 2, 1, 0],
    }
    a, b = (torch.tensor(rows[p]).sign() for p in position)
    x = torch.zeros(1, C, 8, 8)
    x[:, :, 3:, 3:] = (a[:, None] * b)[:5, :5]  # the tile of pixels 3 ... 8; the last are outside
    weight = torch.rand(64, C, 3, 3, generator=torch.Generator().manual_seed(1)) / 100 + 1
    for sign in (1, -1):
        got, want = (
            winograd.convolve(sign * x, weight),
            F.conv2d(sign * x.double(), weight.double(), padding=1),
        )
        assert error(got, want) < BOUND


def test_a_weight_without_others_does_not_overflow():
    x, weight, bias, g = draw((2, 64, 64, 8, 8))
    weight[:] = 0
    weight[3, 5, 1, 1], weight[7, 60, 0, 2] = 2.5, -1e-3
    for got, want in zip(both(x, weight, bias, g), exact(x, weight, bias, g)):
        assert error(got, want) < BOUND
    y = winograd.convolve(x, weight)
    assert error(y[:, 7], F.conv2d(x.double(), weight.double(), padding=1)[:, 7]) < BOUND


def test_an_outlier_spoils_nothing_far_from_it():
    x, weight, bias, g = draw((2, 64, 64, 16, 16))
    g[0, 5, 3, 3] = 3e4
    got, want = winograd.input_gradient(g, weight), exact(x, weight, bias, g)[1]
    assert error(got, want) < 3e-3
    assert error(got[:, :, 8:, 8:], want[:, :, 8:, 8:]) < BOUND
    assert error(got[1], want[1]) < BOUND


def test_small_and_large_numbers():
    x, weight, bias, g = draw((2, 64, 64, 8, 8))
    for a, b in ((1e-20, 1e-9), (1e12, 1e13), (1e-25, 1e13)):
        got, want = winograd.convolve(x * a, weight * b), exact(x * a, weight * b, 0 * bias, g)[0]
        assert error(got, want) < BOUND
    assert not winograd.convolve(torch.zeros_like(x), weight).any()
    assert not winograd.convolve(x, torch.zeros_like(weight)).any()
    assert winograd.convolve(x * 1e-38, weight).abs().max() < 1e-30


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e20])
@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_numbers_that_are_not_finite_are_refused(bad, dtype):
    shape = (3, 37, 70, 9, 11)
    for place in ((0, 0, 0, 0), (2, 36, 8, 10), (1, 5, 4, 4)):
        x, weight, _, g = draw(shape, dtype)
        x[place] = g[place] = bad
        assert both(x, weight, None, g) == (None, None)
        assert winograd.convolve(x[[i for i in range(3) if i != place[0]]], weight) is not None
    for place in ((0, 0, 0, 0), (69, 36, 2, 2)):
        x, weight, _, g = draw(shape, dtype)
        weight[place] = bad
        assert both(x, weight, None, g) == (None, None)
    assert both(x, torch.full_like(weight, bad), None, g) == (None, None)


def test_weights_that_differ_too_much_are_refused():
    """Where the large weight meets no input, the small ones are all that is left."""
    x, weight, *_ = draw((2, 64, 64, 8, 8))
    x[:, 7] = 0
    for factor in (1, 10, 100, 1000, 10000):
        weight[:, 7] = 0
        weight[:, 7, 1, 1] = factor * weight.abs().mean()
        y = winograd.convolve(x, weight)
        assert (y is None) == (factor >= 1000)
        assert y is None or error(y, F.conv2d(x.double(), weight.double(), padding=1)) < 4e-3


# ----------------------------------------------------------------------------- threads and levels


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(winograd, "_GRAIN", 1)
    first, *others = on_threads(
        lambda: [y for shape in SHAPES.values() for y in both(*draw(shape, dtype))]
    )
    assert all(torch.equal(a, b) for made in others for a, b in zip(made, first, strict=True))


@pytest.mark.parametrize("dtype", winograd.DTYPES)
def test_all_processor_levels_agree(dtype, monkeypatch):
    """AVX-512 with and without VNNI and AVX2 give the same bits; without fused multiply-add, the
    transformed numbers round in another way now and then."""
    results = {}
    for level in library.levels():
        for vnni in (True, False) if level == "v4" and winograd.has_vnni() else (False,):
            with library.level(level), monkeypatch.context() as patch:
                patch.setattr(winograd, "has_vnni", lambda vnni=vnni: vnni)
                assert winograd.block() == {"v4": 64, "v3": 16, "baseline": 8}[level]
                each = [y for shape in SHAPES.values() for y in both(*draw(shape, dtype))]
                results[level, vnni] = each
    baseline = results.pop(("baseline", False))
    for other in results.values():
        assert all(torch.equal(a, b) for a, b in zip(other, next(iter(results.values()))))
        for a, b in zip(other, baseline):
            assert error(a, b.double()) < (1e-4 if dtype == torch.float32 else 1e-3)
