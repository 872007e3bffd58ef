"""Networks, each as a value for recipes and as a function that builds an `nn.Module`.

`VGGSNN(num_classes=10).build(neuron, norm)` equals
`vggsnn(num_classes=10, neuron=neuron, norm=norm)`. The module maps `[T, B, C, H, W]` (an MLP
`[T, B, C]`) to outputs over time `[T, B, K]`.

`neuron(channels=c)` makes each spiking layer (default: `bs.LIF`). `norm(channels)` makes each norm,
or `norm(channels, branches=2)` where two currents are added before a neuron (default: torch's
BatchNorm). The values need no torch, which is imported when a network is built.

`pretrained()` lists the trained networks that ship in the package; `bs.load(name)` loads one.
"""

from __future__ import annotations

from dataclasses import is_dataclass

from .dense import MLP
from .network import Model as Model
from .network import factory
from .resnet import (
    MSResNet18,
    ResNet18,
    ResNet19,
    ResNet20,
    ResNet32,
    ResNet34,
    ResNet50,
    SEWResNet18,
    SEWResNet34,
    SEWResNet50,
)
from .shipped import pretrained as pretrained
from .transformer import Spikformer
from .vgg import VGG11, VGG16, VGGSNN, CIFARNet, ConvNet

# the networks that a recipe's text may name: every value imported above
NETWORKS = tuple(
    value for value in list(vars().values()) if isinstance(value, type) and is_dataclass(value)
)

convnet = factory(ConvNet)
vggsnn = factory(VGGSNN)
cifarnet = factory(CIFARNet)
vgg11 = factory(VGG11)
vgg16 = factory(VGG16)
resnet18 = factory(ResNet18)
resnet34 = factory(ResNet34)
resnet50 = factory(ResNet50)
sew_resnet18 = factory(SEWResNet18, "sew_resnet18")
sew_resnet34 = factory(SEWResNet34, "sew_resnet34")
sew_resnet50 = factory(SEWResNet50, "sew_resnet50")
ms_resnet18 = factory(MSResNet18, "ms_resnet18")
resnet19 = factory(ResNet19)
resnet20 = factory(ResNet20)
resnet32 = factory(ResNet32)
spikformer = factory(Spikformer)
mlp = factory(MLP)


def __dir__() -> list[str]:
    """The networks, as functions and as values, and `pretrained`."""
    functions = [
        name
        for name, f in globals().items()
        if getattr(f, "__module__", "") == __name__ and not name.startswith("_")
    ]
    return sorted(["pretrained", *functions, *(kind.__name__ for kind in NETWORKS)])
