"""Convolutional networks without shortcuts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .network import Layer, Network, check_sizes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ConvNet:
    """Blocks of convolution, BatchNorm and neuron, and 2x2 average pools, as listed in `layout`.

    layout: "32-P-64-P" means 3x3 convolutions of 32 and 64 channels, each followed by a pool;
    "15C5" is a 5x5 convolution of 15 channels. Convolutions preserve height and width.
    size: height and width of the input; None puts a global average pool before the linear layers.
    hidden: features of the spiking linear layers before the last linear layer.
    """

    layout: str = "32-P-64-P"
    num_classes: int = 10
    in_channels: int = 1
    size: int | None = 28
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(self)

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from .plain import build_convnet

        return build_convnet(self, neuron, norm)


@dataclass(frozen=True)
class _FixedLayout(Network):
    """A `ConvNet` with a fixed layout; without a field `size` it has a global average pool."""

    layout: ClassVar[str]
    hidden: ClassVar[tuple[int, ...]] = ()

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        options = {"size": None} | vars(self)
        return ConvNet(self.layout, hidden=self.hidden, **options).build(neuron, norm)


@dataclass(frozen=True)
class VGGSNN(_FixedLayout):
    """VGGSNN of Li et al. 2024: 8 convolutions and a linear layer, for event frames of 48x48."""

    in_channels: int = 2
    size: int = 48
    layout = "64-128-P-256-256-P-512-512-P-512-512-P"


class CIFARNet(_FixedLayout):
    """CIFARNet of Li et al. 2024: 8 convolutions, a global average pool and a linear layer."""

    layout = "256-256-P-256-256-P-512-512-P-1024-1024"


@dataclass(frozen=True)
class VGG11(_FixedLayout):
    """VGG11 of Simonyan & Zisserman 2015 (arXiv 1409.1556), with average pools.

    Its linear layers have 512, 512 and `num_classes` features.

    size: height and width of the image.
    """

    size: int = 32
    layout = "64-P-128-P-256-256-P-512-512-P-512-512-P"
    hidden = (512, 512)


@dataclass(frozen=True)
class VGG16(_FixedLayout):
    """VGG16 as in Park et al. 2023.

    It has average pools and linear layers of 512, 512 and `num_classes` features.
    size: height and width of the image.
    """

    size: int = 32
    layout = "64-64-P-128-128-P-256-256-256-P-512-512-512-P-512-512-512-P"
    hidden = (512, 512)
