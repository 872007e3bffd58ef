"""Spikformer: a transformer whose attention multiplies spikes (Zhou et al. 2022, arXiv 2209.15425).

Queries, keys and values are spikes, so no softmax is needed: attention is q k^T v times a constant,
followed by a neuron. The tokens are the pixels of a small image `[T, B, D, H, W]`, so the linear
layers are 1x1 convolutions.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ..layers.norm import batch_norm
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential, run
from .network import Layer
from .plain import check_input
from .transformer import Spikformer

# The authors use 0.125 and a neuron with half the threshold; here all neurons are the same.
SCALE = 0.25


def _convolution(
    inputs: int, outputs: int, neuron: Layer, norm: Layer, kernel: int = 1, pool: bool = False
) -> Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=kernel == 1)
    layers = [OverTime(convolution, norm(outputs)), neuron(channels=outputs)]
    return Sequential(*layers, OverTime(nn.MaxPool2d(3, 2, 1))) if pool else Sequential(*layers)


class Patches(nn.Module):
    """Spiking patch splitting: four convolutions and two pools.

    A fifth convolution computes a relative position embedding, which is added.
    """

    def __init__(self, in_channels: int, dim: int, neuron: Layer, norm: Layer) -> None:
        super().__init__()
        widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        self.split = Sequential(
            *(
                _convolution(a, b, neuron, norm, 3, i > 1)
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        self.position = _convolution(dim, dim, neuron, norm, 3)

    def forward(self, x: Tensor) -> Tensor:
        s = self.split(x)
        return s + self.position(s)


class Attention(nn.Module):
    """Spiking self-attention between the pixels of `[T, B, D, H, W]`."""

    def __init__(self, dim: int, heads: int, neuron: Layer, norm: Layer) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (_convolution(dim, dim, neuron, norm) for _ in range(3))
        self.neuron = neuron(channels=dim)
        self.project = _convolution(dim, dim, neuron, norm)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).flatten(3).unflatten(2, (self.heads, -1)) for part in (self.q, self.k, self.v)
        )
        # [T, B, heads, d, N]: without softmax, (v k^T) q is the same and cheaper, as d < N
        attended = (v @ k.transpose(-1, -2)) @ q * SCALE
        return run((self.neuron, self.project), attended.reshape(x.shape))


class Encoder(nn.Module):
    """Attention, then two linear layers, each with a residual connection."""

    def __init__(self, dim: int, heads: int, hidden: int, neuron: Layer, norm: Layer) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, neuron, norm)
        self.mlp = Sequential(
            _convolution(dim, hidden, neuron, norm), _convolution(hidden, dim, neuron, norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


class SpikformerNet(nn.Module):
    """Patches, encoders, global average pool, linear layer: `[T, B, C, H, W] -> [T, B, K]`."""

    def __init__(self, net: Spikformer, neuron: Layer, norm: Layer | None) -> None:
        super().__init__()
        dim, heads, norm = net.dim, net.heads, norm or batch_norm
        if dim % 8 or dim % heads:
            raise ValueError(f"dim must be a multiple of 8 and of heads={heads}, got {dim}")
        encoders = [Encoder(dim, heads, 4 * dim, neuron, norm) for _ in range(net.depth)]
        head = OverTime(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, net.num_classes))
        self.patches = Patches(net.in_channels, dim, neuron, norm)
        self.encoders = nn.Sequential(*encoders)
        self.head = head
        self.in_channels = net.in_channels

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels)
        return self.head(self.encoders(self.patches(x)))
