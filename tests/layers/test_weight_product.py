"""The weight gradient of a convolution as a product equals torch's."""

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.kernel.cpu import library
from backspike.kernel.cpu.conv import Geometry
from backspike.layers import weight_product
from backspike.layers.sparsity import plan_of

r = torch.Generator().manual_seed(5)
SHAPES = [
    # images, inputs, outputs, size, kernel, stride, padding
    (7, 5, 4, (4, 4), (3, 3), (1, 1), (1, 1)),
    (3, 6, 9, (8, 7), (3, 3), (2, 2), (1, 1)),
    (4, 3, 2, (9, 6), (1, 1), (2, 3), (0, 0)),
    (2, 4, 5, (7, 9), (5, 3), (2, 1), (0, 2)),
    (1, 1, 1, (3, 3), (3, 3), (1, 1), (0, 0)),
]


@pytest.fixture
def tiles(monkeypatch):
    """As if the processor multiplied tiles; returns the shapes of the gradients computed."""
    made, real = [], weight_product.weight_gradient
    monkeypatch.setattr(weight_product, "multiplies_tiles", lambda dtype: dtype == torch.bfloat16)
    monkeypatch.setattr(
        weight_product,
        "weight_gradient",
        lambda x, g, weight, window: made.append(g.shape) or real(x, g, weight, window),
    )
    return made


def _exact(x, g, weight, stride, padding):
    weight = weight.clone().requires_grad_()
    y = nn.functional.conv2d(x, weight, None, stride, padding)
    return torch.autograd.grad(y, weight, g)[0]


@pytest.mark.parametrize("limit", [weight_product.BYTES, 3000, 1], ids=["whole", "parts", "single"])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_is_that_of_torch(shape, format, limit, monkeypatch):
    monkeypatch.setattr(weight_product, "BYTES", limit)
    images, K, C, size, kernel, stride, padding = shape
    x = torch.randn(images, K, *size, generator=r, dtype=torch.float64).to(memory_format=format)
    weight = torch.randn(C, K, *kernel, generator=r, dtype=torch.float64)
    y = nn.functional.conv2d(x, weight, None, stride, padding)
    g = torch.randn(y.shape, generator=r, dtype=torch.float64).to(memory_format=format)
    found = weight_product.weight_gradient(x, g, weight, Geometry(stride, padding, (1, 1)))
    exact = _exact(x, g, weight, stride, padding)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 1e-12 * exact.abs().max()


@pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
def test_a_layer_with_small_outputs_is_as_exact_as_with_torch(tiles, monkeypatch):
    layer = bs.OverTime(nn.Conv2d(64, 80, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.rand(2, 64, 64, 4, 4, generator=r)  # no spikes, so nothing is added or looked up
    g = torch.randn(2, 64, 80, 4, 4, generator=r).bfloat16()

    def gradients():
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).backward(g)
        return [p.grad.double() for p in layer.parameters()]

    weight, bias = gradients()
    assert tiles == [(128, 80, 4, 4)]
    assert "weight gradient as one product" in str(plan_of(layer[0]))
    tiles.clear()
    monkeypatch.setattr(weight_product, "multiplies_tiles", lambda dtype: False)
    beside = gradients()[0]
    assert not tiles
    assert "weight gradient dense" in str(plan_of(layer[0]))
    rounded = x.bfloat16().double().flatten(0, 1), g.double().flatten(0, 1)
    exact = _exact(*rounded, layer[0].weight.detach().double(), (1, 1), (1, 1))
    error, of_torch = ((w - exact).norm() / exact.norm() for w in (weight, beside))
    assert error <= max(1.5 * of_torch, 1e-3)
    assert torch.allclose(bias, g.double().sum((0, 1, 3, 4)), rtol=0.02, atol=0.5)


@pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
@pytest.mark.parametrize(
    ("layer", "size", "dtype"),
    [
        (nn.Conv2d(64, 64, 3, padding=1), 8, torch.bfloat16),
        (nn.Conv2d(64, 64, 3, padding=2, dilation=2), 4, torch.bfloat16),
        (nn.Conv2d(64, 64, 3, padding=1, groups=2), 4, torch.bfloat16),
        (nn.Conv2d(64, 64, 3, padding=1), 4, torch.float32),
    ],
    ids=["large", "dilated", "groups", "float32"],
)
def test_other_layers_are_left_to_torch(layer, size, dtype, tiles):
    x = torch.rand(1, 64, 64, size, size, generator=r)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        bs.OverTime(layer)(x).sum().backward()
    assert layer.weight.grad is not None
    assert not tiles
