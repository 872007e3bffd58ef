"""Small recipes in which time matters: images in sequence, points as spike times, spoken digits.

Networks, constants and schedules are chosen here. The data are described in the files of
`data/sets/`: sequential.py, yinyang.py and spoken_digits.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..models import MLP
from ..surrogate import ATan
from .recipe import Recipe
from .values import PLIF, AdamW, CubaLIF, Neuron

NEURON: dict[str, Any] = {
    "v_threshold": 1.0,
    "v_reset": None,
    "decay_input": False,
    "surrogate": ATan(alpha=2.0),
    "reset_gradient": 1.0,
    "temporal_gradient": True,
}


def _recipe(name: str, T: int, model: MLP, neuron: Neuron, **others: Any) -> Recipe:
    """On the data set with this name."""
    return Recipe(name=name, data=name, T=T, has_time=True, model=model, neuron=neuron, **others)


def _recurrent(name: str, T: int, model: MLP, tau: float, epochs: int, batch_size: int) -> Recipe:
    schedule: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "clip": 1.0}
    return _recipe(name, T, model, PLIF(tau=tau, **NEURON), optimizer=AdamW(lr=5e-3), **schedule)


def smnist() -> Recipe:
    """MNIST row by row (T = 28), two recurrent layers of 128 neurons: minutes on two cores."""
    model = MLP(10, 28, hidden=(128, 128), recurrent=True)
    return _recurrent("smnist", 28, model, tau=5.0, epochs=5, batch_size=128)


def smnist_pixels() -> Recipe:
    """MNIST pixel by pixel (T = 784), one recurrent layer of 128 neurons."""
    return replace(psmnist(), name="smnist-pixels", data="smnist")


def psmnist() -> Recipe:
    """MNIST pixel by pixel in a fixed random order (T = 784), one recurrent layer of 128."""
    model = MLP(10, 1, hidden=(128,), recurrent=True)
    return _recurrent("psmnist", 784, model, tau=20.0, epochs=3, batch_size=64)


def psmnist_rows() -> Recipe:
    """The same order of pixels, 28 at a timestep (T = 28): minutes on two cores."""
    return replace(smnist(), name="psmnist-rows", data="psmnist")


def scifar10() -> Recipe:
    """CIFAR-10 column by column (T = 32), two recurrent layers of 128 neurons: minutes."""
    model = MLP(10, 96, hidden=(128, 128), recurrent=True)
    return _recurrent("scifar10", 32, model, tau=5.0, epochs=5, batch_size=128)


def yinyang() -> Recipe:
    """Yin-Yang: points as the times of four spikes, one layer of 120 current-based neurons."""
    neuron = CubaLIF(tau=20.0, tau_synapse=5.0, **NEURON)
    schedule: dict[str, Any] = {"optimizer": AdamW(lr=1e-2), "epochs": 20, "batch_size": 128}
    return _recipe("yinyang", 50, MLP(3, 4, hidden=(120,)), neuron, **schedule)


def spoken_digits() -> Recipe:
    """Spoken digits of a speaker who is not in the training samples, two recurrent layers."""
    model = MLP(10, 80, hidden=(128, 128), recurrent=True, dropout=0.1)
    schedule: dict[str, Any] = {"optimizer": AdamW(lr=5e-3), "epochs": 15, "batch_size": 64}
    return _recipe("spoken-digits", 100, model, Neuron(tau=9.0, **NEURON), **schedule)
