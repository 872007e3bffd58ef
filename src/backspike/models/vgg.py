"""Plain networks, one block after the other: 3x3 convolution, BatchNorm, neuron; average pools; spiking linear layers.

The convolutions have no bias (a norm follows), T is folded into the batch for its statistics, and the last linear layer
does not spike: its outputs over time `[T, B, K]` are what a readout turns into logits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..layers.norm import NormLayer, batch_norm
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential, run
from ..neuron.lif import LIF
from .dense import spiking_linear

_CONVOLUTION = re.compile("([1-9][0-9]*)(?:C([1-9]?[13579]))?")
Neuron = Callable[..., nn.Module]


class PlainNet(nn.Module):
    """`features`, spiking, then `classifier`, not spiking: `[T, B, C, H, W] -> [T, B, K]`."""

    def __init__(self, features: nn.Sequential, classifier: OverTime, in_channels: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[2] != self.in_channels:
            raise ValueError(
                f"expected input [T, B, {self.in_channels}, H, W], got shape {list(x.shape)}"
            )
        return run((self.features, self.classifier), x)


def convnet(
    layout: str = "32-P-64-P",
    num_classes: int = 10,
    in_channels: int = 1,
    *,
    size: int | None = 28,
    hidden: Sequence[int] = (),
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> PlainNet:
    """Convolutions and pools as `layout` says, "32-P-64-P": 3x3 convolutions of so many channels, 2x2 average pools; 15C5 is a
    5x5 convolution of 15 channels. All keep the size.

    size: height and width of the input, None: global average pool; hidden: features of spiking linear layers
    before the last one.
    """
    blocks: list[nn.Module] = []
    width = in_channels
    for item in layout.split("-"):
        if item == "P":
            blocks.append(OverTime(nn.AvgPool2d(2)))
            size = size // 2 if size else None
        elif found := _CONVOLUTION.fullmatch(item):
            inputs, width, kernel = width, int(found[1]), int(found[2] or 3)
            convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
            blocks += [OverTime(convolution, norm(width)), neuron(channels=width)]
        else:
            raise ValueError(
                f"layout: expected channels and P joined by '-', as in '32-P-64-P', got {item!r} in {layout!r}"
            )
    if size == 0:
        raise ValueError(
            f"layout: {layout!r} pools the input away; it is too small for {layout.count('P')} pools"
        )
    head = [nn.Flatten()] if size else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width *= (size or 1) ** 2
    for features in hidden:
        blocks += [OverTime(*head, spiking_linear(width, features)), neuron(channels=features)]
        head, width = [], features
    return PlainNet(
        Sequential(*blocks), OverTime(*head, nn.Linear(width, num_classes)), in_channels
    )


def vggsnn(
    num_classes: int = 10,
    in_channels: int = 2,
    *,
    size: int = 48,
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> PlainNet:
    """VGGSNN of paper A (Li et al. 2024): 64-128-AP2-256-256-AP2-512-512-AP2-512-512-AP2-FC."""
    return convnet(
        "64-128-P-256-256-P-512-512-P-512-512-P",
        num_classes,
        in_channels,
        size=size,
        neuron=neuron,
        norm=norm,
    )


def cifarnet(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> PlainNet:
    """CIFARNet of paper A (Li et al. 2024): 256-256-AP2-256-256-AP2-512-512-AP2-1024-1024-GAP-FC."""
    layout = "256-256-P-256-256-P-512-512-P-1024-1024"
    return convnet(layout, num_classes, in_channels, size=None, neuron=neuron, norm=norm)


def vgg11(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    size: int = 32,
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> PlainNet:
    """VGG11 with average pools and linear layers 512-512-K."""
    layout = "64-P-128-P-256-256-P-512-512-P-512-512-P"
    return convnet(
        layout, num_classes, in_channels, size=size, hidden=(512, 512), neuron=neuron, norm=norm
    )


def vgg16(
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    size: int = 32,
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> PlainNet:
    """VGG16 with average pools and linear layers 512-512-K, as paper D (Park et al. 2023) uses it."""
    layout = "64-64-P-128-128-P-256-256-256-P-512-512-512-P-512-512-512-P"
    return convnet(
        layout, num_classes, in_channels, size=size, hidden=(512, 512), neuron=neuron, norm=norm
    )
