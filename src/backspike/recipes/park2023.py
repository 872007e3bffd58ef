"""Paper D: Park et al. 2023, arXiv 2308.00558. Spike-dependent gradient scaling (SGS).

From the authors' code [code]: lam 0.9 (tau 10), threshold 0.5, rectangle, SGD with learning rate
0.1, batch size 100, 300 epochs, CutMix, T = 4, tdBN, scaling with a = 0.5. Weight decay, crops and
flips, and the reset are our choice [ours]. We do not know the accuracies that it reports.
"""

from __future__ import annotations

from ..data.augment import Crop, Flip
from ..data.mixing import CutMix
from ..models import VGG16, Model, ResNet20, ResNet32
from ..surrogate import Rectangle
from .recipe import Recipe
from .values import SGD, SGS, TDBN, Neuron

NEURON = Neuron(
    tau=10.0,
    v_threshold=0.5,
    v_reset=0.0,
    decay_input=False,
    surrogate=Rectangle(width=1.0),
    reset_gradient=1.0,
    temporal_gradient=True,
)


def _cifar10(name: str, model: Model) -> Recipe:
    return Recipe(
        name=name,
        data="cifar10",
        T=4,
        model=model,
        neuron=NEURON,
        norm=TDBN(),
        scaling=SGS(alpha=0.5),
        optimizer=SGD(lr=0.1, weight_decay=5e-4),
        epochs=300,
        batch_size=100,
        augment=(Crop(4), Flip(), CutMix()),
    )


def cifar10_vgg16() -> Recipe:
    """CIFAR-10, VGG16, SGS: hours on a GPU."""
    return _cifar10("cifar10-vgg16", VGG16())


def cifar10_resnet20() -> Recipe:
    """CIFAR-10, ResNet20, SGS: hours on a GPU."""
    return _cifar10("cifar10-resnet20", ResNet20())


def cifar10_resnet32() -> Recipe:
    """CIFAR-10, ResNet32, SGS: hours on a GPU."""
    return _cifar10("cifar10-resnet32", ResNet32())
