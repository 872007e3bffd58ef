"""Paper B: Yang 2020, arXiv 2011.09964. Gradient through the reset (TSBP) compared with a detached
reset (STBP).

Known are T and the accuracies [note], and from the author's notebook [code] tau 5, threshold 1,
input not divided by tau, a first-order synapse with tau_s 2 before the neuron, hard reset, sigmoid
with c = 0.2. The rest is our choice [ours]: networks after TSSL-BP (Zhang & Li 2020, arXiv
2002.10085) with BatchNorm and 5x5 convolutions that keep the size, AdamW, and a synapse gain of 1
instead of 1/tau_s, a factor that BatchNorm's weights absorb. `--neuron.reset_gradient 0` is STBP,
`--neuron.temporal_gradient False` the spatial rule.
"""

from __future__ import annotations

from dataclasses import replace

from ..data.augment import Crop, Flip
from ..models import ConvNet
from ..surrogate import Sigmoid
from .recipe import Recipe
from .shipped import Reported
from .values import AdamW, CubaLIF

NEURON = CubaLIF(
    tau=5.0,
    tau_synapse=2.0,
    v_threshold=1.0,
    v_reset=0.0,
    decay_input=False,
    surrogate=Sigmoid(alpha=5.0),
    reset_gradient=1.0,
    temporal_gradient=True,
)


def reported(accuracy: float) -> Reported:
    return Reported(accuracy, None, "Yang 2020")


def _recipe(name: str, data: str, T: int, model: ConvNet) -> Recipe:
    return Recipe(
        name=name,
        data=data,
        T=T,
        model=model,
        neuron=NEURON,
        optimizer=AdamW(lr=5e-4),
        epochs=100,
        batch_size=50,
    )


def mnist_tsbp() -> Recipe:
    """MNIST, two convolutions and a hidden layer, TSBP: an hour on a GPU."""
    model = ConvNet("15C5-P-40C5-P", size=28, hidden=(300,))
    return _recipe("mnist-tsbp", "mnist", 5, model)


def nmnist_tsbp() -> Recipe:
    """N-MNIST, two convolutions, TSBP: hours on a GPU."""
    model = ConvNet("12C5-P-64C5-P", in_channels=2, size=34)
    return _recipe("nmnist-tsbp", "nmnist", 30, model)


def cifar10_tsbp() -> Recipe:
    """CIFAR-10, five convolutions and two hidden layers, TSBP: hours on a GPU."""
    model = ConvNet("96-256-P-384-P-384-256", in_channels=3, size=32, hidden=(1024, 1024))
    return replace(_recipe("cifar10-tsbp", "cifar10", 5, model), augment=(Crop(4), Flip()))
