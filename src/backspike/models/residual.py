"""Residual networks. Parameters are named as in torchvision, so its weights load.

    ResNet  adds current and spikes, then a neuron: torchvision's network with neurons for ReLU
    SEW     adds the spikes of a block to its input spikes (Fang et al. 2021, arXiv 2102.04159; ADD)
    MS      adds currents; neurons precede the convolutions (Hu et al. 2021, arXiv 2112.08954)

The stem "imagenet" is a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2; "cifar" is a
3x3 convolution. Convolutions have no bias, and the last linear layer does not spike. Norms are made
by `norm(channels)`, or `norm(channels, branches=2)` where two currents are added before a neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..layers.block import Block, run_blocks
from ..layers.norm import batch_norm
from .network import Layer
from .plain import check_input, spiking_linear


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class _Shortcut(nn.Sequential):
    """The shortcut of a residual block: 1x1 convolution, norm, and a neuron if spikes are added."""

    def spiking_blocks(self) -> Sequence[Block]:
        return [Block(*self)]

    def forward(self, x: Tensor) -> Tensor:
        return Block(*self).run(x)


def _shortcut(
    inputs: int, outputs: int, stride: int, norm: Layer, neuron: Layer | None = None
) -> _Shortcut | None:
    if stride == 1 and inputs == outputs:
        return None
    convolution = _conv(inputs, outputs, 1, stride)
    if neuron is None:  # currents are added
        return _Shortcut(convolution, norm(outputs, branches=2))
    return _Shortcut(convolution, norm(outputs), neuron(channels=outputs))


def _around(shortcut: _Shortcut | None, x: Tensor) -> Tensor:
    return x if shortcut is None else shortcut(x)


class Basic(nn.Module):
    """conv-bn-neuron, conv-bn, addition, neuron."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, neuron: Layer, norm: Layer = batch_norm
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.sn1 = neuron(channels=width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width, branches=2)
        self.sn2 = neuron(channels=width)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def spiking_blocks(self) -> Sequence[Block]:
        return (
            Block(self.conv1, self.bn1, self.sn1),
            Block(self.conv2, self.bn2),
            Block(neuron=self.sn2),
        )

    def forward(self, x: Tensor) -> Tensor:
        *convolutions, last = self.spiking_blocks()
        return last.run(run_blocks(convolutions, x) + _around(self.downsample, x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the last neuron comes after the addition."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, neuron: Layer, norm: Layer = batch_norm
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.sn1 = neuron(channels=width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.sn2 = neuron(channels=width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = norm(4 * width, branches=2)
        self.sn3 = neuron(channels=4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride, norm)

    def spiking_blocks(self) -> Sequence[Block]:
        first, second = Block(self.conv1, self.bn1, self.sn1), Block(self.conv2, self.bn2, self.sn2)
        return first, second, Block(self.conv3, self.bn3), Block(neuron=self.sn3)

    def forward(self, x: Tensor) -> Tensor:
        *convolutions, last = self.spiking_blocks()
        return last.run(run_blocks(convolutions, x) + _around(self.downsample, x))


class SEWBasic(nn.Module):
    """conv-bn-neuron twice, then the addition of spikes."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, neuron: Layer, norm: Layer = batch_norm
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.sn1 = neuron(channels=width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width)
        self.sn2 = neuron(channels=width)
        self.downsample = _shortcut(inputs, width, stride, norm, neuron)

    def spiking_blocks(self) -> Sequence[Block]:
        return Block(self.conv1, self.bn1, self.sn1), Block(self.conv2, self.bn2, self.sn2)

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self.spiking_blocks(), x, add=_around(self.downsample, x))


class SEWBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with its neuron, then the addition of spikes."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, neuron: Layer, norm: Layer = batch_norm
    ) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.sn1 = neuron(channels=width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = norm(width)
        self.sn2 = neuron(channels=width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = norm(4 * width)
        self.sn3 = neuron(channels=4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride, norm, neuron)

    def spiking_blocks(self) -> Sequence[Block]:
        conv_norm_neuron = (
            (self.conv1, self.bn1, self.sn1),
            (self.conv2, self.bn2, self.sn2),
            (self.conv3, self.bn3, self.sn3),
        )
        return [Block(*layers) for layers in conv_norm_neuron]

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self.spiking_blocks(), x, add=_around(self.downsample, x))


class MSBasic(nn.Module):
    """neuron-conv-bn twice, then the addition of currents."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, neuron: Layer, norm: Layer = batch_norm
    ) -> None:
        super().__init__()
        self.sn1 = neuron(channels=inputs)
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = norm(width)
        self.sn2 = neuron(channels=width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width, branches=2)
        self.downsample = _shortcut(inputs, width, stride, norm)

    def spiking_blocks(self) -> Sequence[Block]:
        return (
            Block(neuron=self.sn1),
            Block(self.conv1, self.bn1, self.sn2),
            Block(self.conv2, self.bn2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self.spiking_blocks(), x) + _around(self.downsample, x)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pool, linear layer.

    Maps `[T, B, C, H, W]` to `[T, B, K]`.
    depths: number of blocks in each stage. widths: their channels. Each stage but the first halves
    height and width.
    hidden: features of a spiking linear layer before the last one; 0 for none.
    zero_init_residual: start the last norm of every block with weights of 0, as in Goyal et al.
    2017 and torchvision, so that each block starts as its shortcut. Some deep networks with the
    neuron after the addition only learn with this option (LOG.md).
    """

    def __init__(
        self,
        kind: type[Basic | Bottleneck | SEWBasic | SEWBottleneck | MSBasic],
        depths: Sequence[int],
        widths: Sequence[int],
        neuron: Layer,
        norm: Layer | None = None,
        *,
        num_classes: int,
        in_channels: int,
        stem: str = "cifar",
        hidden: int = 0,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        norm = norm or batch_norm
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        inputs, currents = widths[0], kind is MSBasic
        self.in_channels = in_channels
        self.conv1 = (
            _conv(in_channels, inputs, 3)
            if stem == "cifar"
            else _conv(in_channels, inputs, 7, stride=2)
        )
        self.bn1 = norm(inputs)
        # MS blocks start with their neuron, so a last neuron makes the spikes that are pooled
        self.sn1 = None if currents else neuron(channels=inputs)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else None
        for i, (depth, width) in enumerate(zip(depths, widths), 1):
            stage = []
            for j in range(depth):
                stage.append(kind(inputs, width, 2 if i > 1 and j == 0 else 1, neuron, norm))
                inputs = width * kind.expansion
            self.add_module(f"layer{i}", nn.Sequential(*stage))
        self.stages = len(depths)
        self.sn = neuron(channels=inputs) if currents else None
        self.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc1 = spiking_linear(inputs, hidden) if hidden else None
        self.sn_fc1 = neuron(channels=hidden) if hidden else None
        self.fc = nn.Linear(hidden or inputs, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(m, kind):
                last: Any = m.bn3 if isinstance(m, Bottleneck | SEWBottleneck) else m.bn2
                nn.init.zeros_(last.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # SpikingJelly's name of the neuron in a SEW shortcut
        for key in [key for key in state_dict if ".downsample_sn." in key]:
            state_dict[key.replace(".downsample_sn.", ".downsample.2.")] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def spiking_blocks(self) -> Sequence[Block]:
        stem = Block(self.conv1, self.bn1, self.sn1, self.maxpool)
        return (
            stem,
            Block(neuron=self.sn, pool=self.avgpool),
            Block(self.fc1, None, self.sn_fc1),
            Block(self.fc),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, self.in_channels)
        stem, *head = self.spiking_blocks()
        x = stem.run(x)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return run_blocks(head, x)
