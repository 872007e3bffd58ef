"""Operands of convolutions, shared by tests of Winograd's algorithm."""

import torch

# images, input channels, output channels, height, width
SHAPES = {
    "whole blocks": (2, 64, 64, 8, 8),
    "two parts, two blocks": (1, 128, 128, 4, 8),
    "no multiple of anything": (3, 37, 70, 9, 11),
    "a part and a channel": (2, 65, 5, 7, 4),
    "one channel, one pixel": (1, 1, 1, 1, 1),
    "thin": (2, 16, 33, 1, 30),
    "many tiles of one image": (1, 20, 17, 50, 45),
}


def draw(shape, dtype=torch.float32, seed=0):
    """Spikes x, weight, bias and an output gradient with a few large values."""
    images, C, N, H, W = shape
    r = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 9, (images, C, H, W), generator=r).sub(5).clamp(min=0) / 4
    weight = torch.randn(N, C, 3, 3, generator=r) / C**0.5
    g = torch.randn(images, N, H, W, generator=r) * torch.randn(images, N, H, W, generator=r).exp()
    x, g = (a.to(dtype).contiguous(memory_format=torch.channels_last) for a in (x, g))
    return x, weight, torch.randn(N, generator=r), g


def error(got, want):
    assert got.shape == want.shape
    scale = float(want.square().mean().sqrt())
    return float((got.double() - want).square().mean().sqrt()) / max(scale, 1e-30)
