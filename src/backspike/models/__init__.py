"""Networks by name. Each comes twice: a value that a recipe can hold and print, and the factory that builds the module.

`VGGSNN(num_classes=10)` is a frozen dataclass without torch; `VGGSNN(...).build(neuron, norm)` and
`vggsnn(num_classes=..., in_channels=..., neuron=..., norm=...)` give the same `nn.Module`, which maps `[T, B, C, H, W]`, an MLP
`[T, B, C]`, to the outputs over time `[T, B, K]`. `neuron` is called as `neuron(channels=c)` for every spiking layer; `norm`,
torch's BatchNorm where none is given, as `norm(channels)`, or as `norm(channels, branches=2)` for two currents that are added
before a neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    Layer = Callable[..., nn.Module]

    from .dense import mlp as mlp
    from .residual import ms_resnet18 as ms_resnet18
    from .residual import resnet18 as resnet18
    from .residual import resnet19 as resnet19
    from .residual import resnet20 as resnet20
    from .residual import resnet32 as resnet32
    from .residual import resnet34 as resnet34
    from .residual import resnet50 as resnet50
    from .residual import sew_resnet18 as sew_resnet18
    from .residual import sew_resnet34 as sew_resnet34
    from .residual import sew_resnet50 as sew_resnet50
    from .transformer import spikformer as spikformer
    from .vgg import cifarnet as cifarnet
    from .vgg import convnet as convnet
    from .vgg import vgg11 as vgg11
    from .vgg import vgg16 as vgg16
    from .vgg import vggsnn as vggsnn

_FACTORIES = {
    "vgg": ("convnet", "vggsnn", "cifarnet", "vgg11", "vgg16"),
    "residual": (
        *("resnet18", "resnet34", "resnet50", "sew_resnet18", "sew_resnet34", "sew_resnet50"),
        *("ms_resnet18", "resnet19", "resnet20", "resnet32"),
    ),
    "transformer": ("spikformer",),
    "dense": ("mlp",),
}
_HOME = {factory: module for module, factories in _FACTORIES.items() for factory in factories}


@runtime_checkable
class Model(Protocol):
    """A network as a value: what a recipe holds."""

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module: ...


@dataclass(frozen=True)
class ConvNet:
    """A small convolutional network, see `convnet`. layout: "32-P-64-P", "15C5-P-40C5-P"; hidden: spiking linear layers."""

    layout: str = "32-P-64-P"
    num_classes: int = 10
    in_channels: int = 1
    size: int = 28
    hidden: tuple[int, ...] = ()

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from .vgg import convnet

        return convnet(**vars(self), **_layers(neuron, norm))


@dataclass(frozen=True)
class _Named:
    """A network that is all in the name of its factory, but for the classes and the channels of the input."""

    num_classes: int = 10
    in_channels: int = 3
    _factory: ClassVar[str]

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        return getattr(_module(self._factory), self._factory)(**vars(self), **_layers(neuron, norm))


@dataclass(frozen=True)
class VGGSNN(_Named):
    """VGGSNN of paper A (Li et al. 2024): 8 convolutions, for event frames of 48x48."""

    in_channels: int = 2
    size: int = 48
    _factory = "vggsnn"


class CIFARNet(_Named):
    """CIFARNet of paper A (Li et al. 2024): 8 convolutions and a global average pool."""

    _factory = "cifarnet"


@dataclass(frozen=True)
class _WithStem(_Named):
    stem: str = "imagenet"
    zero_init_residual: bool = False


class ResNet18(_WithStem):
    """ResNet18, the neuron after the addition. stem: "imagenet" or, for small images, "cifar"."""

    _factory = "resnet18"


class ResNet34(_WithStem):
    """ResNet34, the neuron after the addition. stem: "imagenet" or, for small images, "cifar"."""

    _factory = "resnet34"


class ResNet50(_WithStem):
    """ResNet50, the neuron after the addition. stem: "imagenet" or, for small images, "cifar"."""

    _factory = "resnet50"


class SEWResNet18(_WithStem):
    """SEW-ResNet18 (Fang et al. 2021). stem: "imagenet" or, for small images, "cifar"."""

    _factory = "sew_resnet18"


class SEWResNet34(_WithStem):
    """SEW-ResNet34 (Fang et al. 2021). stem: "imagenet" or, for small images, "cifar"."""

    _factory = "sew_resnet34"


class SEWResNet50(_WithStem):
    """SEW-ResNet50 (Fang et al. 2021). stem: "imagenet" or, for small images, "cifar"."""

    _factory = "sew_resnet50"


class MSResNet18(_WithStem):
    """MS-ResNet18 (Hu et al. 2021). stem: "imagenet" or, for small images, "cifar"."""

    _factory = "ms_resnet18"


class ResNet19(_Named):
    """ResNet19 of paper C (Zheng et al. 2021)."""

    _factory = "resnet19"


class ResNet20(_Named):
    """ResNet20 of paper D (Park et al. 2023)."""

    _factory = "resnet20"


class ResNet32(_Named):
    """ResNet32 of paper D (Park et al. 2023)."""

    _factory = "resnet32"


@dataclass(frozen=True)
class VGG11(_Named):
    """VGG11 for images of `size`, 32 by default, with linear layers 512-512-K."""

    _factory = "vgg11"

    size: int = 32


@dataclass(frozen=True)
class VGG16(_Named):
    """VGG16 for images of `size`, 32 by default, with linear layers 512-512-K, as paper D (Park et al. 2023) uses it."""

    _factory = "vgg16"

    size: int = 32


@dataclass(frozen=True)
class Spikformer(_Named):
    """Spikformer-4-384 (Zhou et al. 2022). dim: features of a token; depth: encoders; heads: of the attention."""

    dim: int = 384
    depth: int = 4
    heads: int = 12
    _factory = "spikformer"


@dataclass(frozen=True)
class MLP(_Named):
    """Spiking linear layers, for inputs without a place: SHD, SSC. hidden: their features; recurrent: spikes come back to their
    layer; dropout: the share of spikes dropped behind each."""

    num_classes: int = 20
    in_channels: int = 700
    hidden: tuple[int, ...] = (128, 128)
    recurrent: bool = False
    dropout: float = 0.0
    _factory = "mlp"


# what a recipe may name
NETWORKS: tuple[type, ...] = (
    *(ConvNet, VGGSNN, CIFARNet, VGG11, VGG16),
    *(
        ResNet18,
        ResNet34,
        ResNet50,
        SEWResNet18,
        SEWResNet34,
        SEWResNet50,
        MSResNet18,
        ResNet19,
        ResNet20,
        ResNet32,
    ),
    *(Spikformer, MLP),
)
__all__ = ["Model", "NETWORKS", *(network.__name__ for network in NETWORKS), *_HOME]


def _layers(neuron: Layer, norm: Layer | None) -> dict[str, Any]:
    return {"neuron": neuron} if norm is None else {"neuron": neuron, "norm": norm}


def _module(factory: str) -> ModuleType:
    return import_module(f".{_HOME[factory]}", __name__)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_module(name), name)
