"""Paper C: Wang, Cheng & Lim 2023, arXiv 2304.13289. Learned surrogate width (PSG), potential
distribution adjustment (PDA).

From the author's earlier code [code]: lam 0.25 (tau 4/3), rectangle of width 1, SGD with learning
rate 0.04, batch size 64, 400 epochs. ResNet19 and T are from the paper [note]. The threshold, the
reset, crops and flips, the strength of PDA, and tdBN, with which ResNet19 was introduced (Zheng et
al. 2021), are our choice [ours].
"""

from __future__ import annotations

from ..data.augment import Crop, Flip
from ..models import ResNet19
from ..surrogate import Parametric, Rectangle
from .recipe import Recipe
from .shipped import Reported
from .values import PDA, SGD, TDBN, Neuron

NEURON = Neuron(
    tau=4 / 3,
    v_threshold=0.5,
    v_reset=0.0,
    decay_input=False,
    surrogate=Parametric(Rectangle(width=1.0)),
    reset_gradient=1.0,
    temporal_gradient=True,
)


def reported(accuracy: float) -> Reported:
    return Reported(accuracy, None, "Wang et al. 2023")


def _resnet19(name: str, data: str, num_classes: int, T: int) -> Recipe:
    return Recipe(
        name=name,
        data=data,
        T=T,
        model=ResNet19(num_classes),
        neuron=NEURON,
        norm=TDBN(),
        potential=PDA(),
        optimizer=SGD(lr=0.04),
        epochs=400,
        batch_size=64,
        augment=(Crop(4), Flip()),
    )


def cifar10_resnet19() -> Recipe:
    """CIFAR-10, ResNet19, PSG + PDA: a day on a GPU."""
    return _resnet19("cifar10-resnet19", "cifar10", 10, T=6)


def cifar100_resnet19() -> Recipe:
    """CIFAR-100, ResNet19, PSG + PDA: a day on a GPU."""
    return _resnet19("cifar100-resnet19", "cifar100", 100, T=4)
