"""Build the networks without branches: `ConvNet` and `MLP`.

A block is a convolution or linear layer without bias, BatchNorm over time and batch, and a neuron.
The last linear layer does not spike; a readout turns its outputs over time into logits.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

from torch import Tensor, nn

from ..layers.norm import batch_norm
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential, run
from ..neuron.prepare import check_tensor
from ..neuron.recurrent import Recurrent
from .dense import MLP
from .network import Layer
from .vgg import ConvNet

_CONVOLUTION = re.compile("([1-9][0-9]*)(?:C([1-9]?[13579]))?")


class PlainNet(nn.Module):
    """Spiking `features`, then a `classifier` without spikes.

    Maps `[T, B, C, H, W]`, or `[T, B, C]` if not `images`, to `[T, B, K]`.
    """

    def __init__(
        self, features: nn.Sequential, classifier: OverTime, in_channels: int, images: bool = True
    ) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.in_channels = in_channels
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels, self.images)
        return run((self.features, self.classifier), x)


def check_input(x: Tensor, channels: int, images: bool = True) -> None:
    check_tensor(x)
    if x.dim() != (5 if images else 3) or x.shape[2] != channels:
        size = ", H, W" if images else ""
        raise ValueError(f"expected input [T, B, {channels}{size}], got shape {list(x.shape)}")


def spiking_linear(inputs: int, features: int) -> nn.Linear:
    """A linear layer followed by a neuron without a norm: weights of variance 6 / inputs (ours).

    If a sixth of the inputs spike, the currents have variance 1, as after a norm. torch's default
    initialisation has an 18th of that: the currents stay below the threshold, no neuron fires and,
    where the surrogate is zero, nothing learns. The 2 / inputs of He et al. 2015 preserve signals
    through ReLU, but not through neurons that rarely fire.
    """
    layer = nn.Linear(inputs, features)
    nn.init.normal_(layer.weight, std=math.sqrt(6 / inputs))
    return layer


def build_convnet(net: ConvNet, neuron: Layer, norm: Layer | None) -> PlainNet:
    blocks: list[nn.Module] = []
    width, size = net.in_channels, net.size
    for item in net.layout.split("-"):
        if item == "P":
            blocks.append(OverTime(nn.AvgPool2d(2)))
            size = size // 2 if size else None
        elif found := _CONVOLUTION.fullmatch(item):
            inputs, width, kernel = width, int(found[1]), int(found[2] or 3)
            convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
            blocks += [
                OverTime(convolution, (norm or batch_norm)(width)),
                neuron(channels=width),
            ]
        else:
            raise ValueError(
                "layout: expected channels and P separated by '-', as in '32-P-64-P', "
                f"got {item!r} in {net.layout!r}"
            )
    if size == 0:
        raise ValueError(
            f"layout: {net.layout!r} has {net.layout.count('P')} pools, "
            f"too many for inputs of size {net.size}"
        )
    head = [nn.Flatten()] if size else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    width *= (size or 1) ** 2
    for features in net.hidden:
        blocks += [OverTime(*head, spiking_linear(width, features)), neuron(channels=features)]
        head, width = [], features
    classifier = OverTime(*head, nn.Linear(width, net.num_classes))
    return PlainNet(Sequential(*blocks), classifier, net.in_channels)


def build_mlp(net: MLP, neuron: Layer, norm: Layer | None) -> PlainNet:
    blocks: list[nn.Module] = []
    widths = (net.in_channels, *net.hidden)
    for inputs, features in pairwise(widths):
        normalise = norm(features) if norm else nn.BatchNorm1d(features)
        blocks.append(OverTime(nn.Linear(inputs, features, bias=False), normalise))
        blocks.append(_recurrent(features, neuron) if net.recurrent else neuron(channels=features))
        if net.dropout:
            blocks.append(OverTime(nn.Dropout(net.dropout)))
    classifier = OverTime(nn.Linear(widths[-1], net.num_classes))
    return PlainNet(Sequential(*blocks), classifier, net.in_channels, images=False)


def _recurrent(features: int, neuron: Layer) -> Recurrent:
    back = nn.Linear(features, features, bias=False)
    nn.init.orthogonal_(back.weight)
    return Recurrent(back, neuron(channels=features))
