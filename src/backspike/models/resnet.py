"""ResNets and their spiking variants; their residual blocks are in `residual.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .network import Layer, Network

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class _ResNet(Network):
    """A `residual.ResNet` of `block`s; `depths` and `widths`: blocks and channels per stage."""

    block: ClassVar[str] = "Basic"
    depths: ClassVar[tuple[int, ...]]
    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)
    hidden: ClassVar[int] = 0

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from . import residual

        block = getattr(residual, self.block)
        options = vars(self) | {"hidden": self.hidden}
        width = options.pop("width", None)
        widths = tuple(width << i for i in range(len(self.depths))) if width else self.widths
        return residual.ResNet(block, self.depths, widths, neuron, norm, **options)


@dataclass(frozen=True)
class _WithStem(_ResNet):
    stem: str = "imagenet"
    zero_init_residual: bool = False
    width: int = 64


class ResNet18(_WithStem):
    """ResNet18 of He et al. 2016 (arXiv 1512.03385), with neurons in place of ReLUs.

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    depths = (2, 2, 2, 2)


class ResNet34(_WithStem):
    """ResNet34 of He et al. 2016 (arXiv 1512.03385), with neurons in place of ReLUs.

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    depths = (3, 4, 6, 3)


class ResNet50(_WithStem):
    """ResNet50 of He et al. 2016 (arXiv 1512.03385), with neurons in place of ReLUs.

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    block = "Bottleneck"
    depths = (3, 4, 6, 3)


class SEWResNet18(_WithStem):
    """SEW-ResNet18 (Fang et al. 2021).

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    block = "SEWBasic"
    depths = (2, 2, 2, 2)


class SEWResNet34(_WithStem):
    """SEW-ResNet34 (Fang et al. 2021), used for ImageNet by Li et al. 2024.

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    block = "SEWBasic"
    depths = (3, 4, 6, 3)


class SEWResNet50(_WithStem):
    """SEW-ResNet50 (Fang et al. 2021).

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    block = "SEWBottleneck"
    depths = (3, 4, 6, 3)


class MSResNet18(_WithStem):
    """MS-ResNet18 (Hu et al. 2021) with torchvision's shortcuts.

    stem: "imagenet", or "cifar" for small images. width: channels of the first stage; each later
    stage doubles them.
    """

    block = "MSBasic"
    depths = (2, 2, 2, 2)


class ResNet19(_ResNet):
    """ResNet19 of Zheng et al. 2021 (arXiv 2011.05280), with 256 spiking features at the end."""

    depths = (3, 3, 2)
    widths = (128, 256, 512)
    hidden = 256


class ResNet20(_ResNet):
    """ResNet20 of Park et al. 2023: three stages of three blocks."""

    depths = (3, 3, 3)
    widths = (64, 128, 256)


class ResNet32(_ResNet):
    """ResNet32 of Park et al. 2023: three stages of five blocks."""

    depths = (5, 5, 5)
    widths = (64, 128, 256)
