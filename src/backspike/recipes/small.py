"""Small recipes that train on two CPU cores in seconds to minutes; some use bundled data."""

from __future__ import annotations

from ..data.augment import Crop, Cutout, Flip, Shift
from ..models import ConvNet
from ..surrogate import Triangle
from .li2024 import NEURON
from .recipe import Recipe
from .values import SGD, TWO, AdamW, CrossEntropy, Muon, Neuron


def digits() -> Recipe:
    """UCI digits (bundled, 8x8), small convolutional network, MSG + TWO: the default, seconds."""
    return Recipe(
        name="digits",
        data="digits",
        T=4,
        model=ConvNet("32-P-64-P", size=8),
        neuron=NEURON,
        readout=TWO(),
        optimizer=AdamW(lr=5e-3),
        epochs=25,
        warmup_epochs=1.0,
        ema=0.98,
        augment=(Shift(1),),
    )


def digits_dvs() -> Recipe:
    """Simulated event-camera recordings of the UCI digits (bundled), MSG + TWO: a minute or two."""
    return Recipe(
        name="digits-dvs",
        data="digits-dvs",
        T=10,
        size=17,
        model=ConvNet("16-P-32-P-32-P", in_channels=2, size=17),
        neuron=NEURON,
        readout=TWO(),
        optimizer=AdamW(lr=1e-2),
        epochs=25,
        warmup_epochs=1.0,
        augment=(Shift(1),),
    )


def mnist() -> Recipe:
    """MNIST, small convolutional network, MSG + TWO: minutes on two cores."""
    return Recipe(
        name="mnist",
        data="mnist",
        T=4,
        model=ConvNet("16-P-32-P-64-P", size=28),
        neuron=NEURON,
        readout=TWO(start_epoch=1),
        optimizer=AdamW(lr=3e-3),
        epochs=8,
        batch_size=128,
        warmup_epochs=0.5,
        augment=(Shift(1),),
    )


def cifar10_small() -> Recipe:
    """CIFAR-10, small convolutional network: ten minutes on two cores."""
    return Recipe(
        name="cifar10-small",
        data="cifar10",
        T=2,
        model=ConvNet("32-P-64-P-128-P-256", in_channels=3, size=32),
        neuron=Neuron(
            tau=2.0,
            v_threshold=0.5,
            v_reset=0.0,
            decay_input=True,
            surrogate=Triangle(alpha=1.0),
            reset_gradient=1.0,
            temporal_gradient=True,
        ),
        loss=CrossEntropy(label_smoothing=0.1),
        optimizer=SGD(lr=0.1, weight_decay=5e-4, nesterov=True),
        epochs=6,
        batch_size=128,
        warmup_epochs=1.0,
        augment=(Crop(4), Flip()),
    )


def cifar10_10min() -> Recipe:
    """CIFAR-10, network of `cifar10-small`, Muon: ten minutes on two cores without bfloat16.

    docs/results/cifar10-minutes.md has the experiments behind it.
    """
    return cifar10_small().replace(
        {
            "name": "cifar10-10min",
            "T": 1,
            "neuron.decay_input": False,
            "optimizer": Muon(lr=0.05, momentum=0.6, sgd_scale=2.0),
            "epochs": 10,
            "batch_size": 256,
            "convolution": "fast",
        }
    )


def cifar10_30min() -> Recipe:
    """CIFAR-10, larger network, Muon: half an hour on two cores without bfloat16.

    docs/results/cifar10-minutes.md has the experiments behind it.
    """
    return cifar10_10min().replace(
        {
            "name": "cifar10-30min",
            "model": ConvNet("48-P-96-P-192-P-384", in_channels=3, size=32),
            "epochs": 23,
            "warmup_epochs": 2.0,
            "augment": (Crop(4), Flip(), Cutout(8)),
        }
    )


def cifar10_60min() -> Recipe:
    """CIFAR-10, network of `cifar10-30min`, T = 2: an hour on two cores without bfloat16.

    docs/results/cifar10-minutes.md has the experiments behind it.
    """
    return cifar10_30min().replace(
        {
            "name": "cifar10-60min",
            "T": 2,
            "epochs": 32,
            "warmup_epochs": 3.0,
            "augment": (Crop(4), Flip(), Cutout(10)),
        }
    )
