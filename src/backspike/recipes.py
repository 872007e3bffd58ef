"""The recipes that ship. Each is a function that returns a `Recipe`; a variant changes two fields.

`NAMES` lists them for the command line; the first line of a docstring is what `backspike recipes` prints.
"""

from __future__ import annotations

from dataclasses import replace

from .data.augment import Crop, Cutout, Flip, Shift
from .data.autoaugment import AutoAugment
from .models import CIFARNet, ConvNet
from .recipe import TWO, AdamW, Neuron, Recipe
from .surrogate import Masked, Triangle

# paper A (Li et al. 2024): tau 2, theta 0.5, hard reset to 0, input divided by tau, triangle of peak 2, masked with p = 0.5
PAPER_A = Neuron(tau=2.0, v_threshold=0.5, v_reset=0.0, decay_input=True, surrogate=Masked(Triangle(alpha=2.0), p=0.5))


def digits() -> Recipe:
    """UCI digits (bundled, 8x8), small convolutional network, T = 4, MSG + TWO: the main job, seconds."""
    return Recipe(
        name="digits",
        data="digits",
        T=4,
        model=ConvNet("32-P-64-P", size=8),
        neuron=PAPER_A,
        readout=TWO(),
        optimizer=AdamW(lr=5e-3),
        epochs=25,
        warmup_epochs=1.0,
        ema=0.98,
        augment=(Shift(1),),
    )


def digits_dvs() -> Recipe:
    """Simulated event-camera recordings of the UCI digits (bundled), T = 10, MSG + TWO: a minute or two."""
    return Recipe(
        name="digits-dvs",
        data="digits-dvs",
        T=10,
        size=17,
        model=ConvNet("16-P-32-P-32-P", in_channels=2, size=17),
        neuron=PAPER_A,
        readout=TWO(),
        optimizer=AdamW(lr=1e-2),
        epochs=25,
        warmup_epochs=1.0,
        augment=(Shift(1),),
    )


def mnist() -> Recipe:
    """MNIST, small convolutional network, T = 4, MSG + TWO: minutes on two cores."""
    return Recipe(
        name="mnist",
        data="mnist",
        T=4,
        model=ConvNet("16-P-32-P-64-P", size=28),
        neuron=PAPER_A,
        readout=TWO(start_epoch=1),
        optimizer=AdamW(lr=3e-3),
        epochs=5,
        batch_size=128,
        warmup_epochs=0.5,
        augment=(Shift(1),),
    )


def cifar10() -> Recipe:
    """CIFAR-10, CIFARNet, T = 4, MSG + TWO with the settings of paper A: a GPU and hours."""
    return Recipe(
        name="cifar10",
        data="cifar10",
        T=4,
        model=CIFARNet(),
        neuron=PAPER_A,
        readout=TWO(),
        optimizer=AdamW(lr=0.05 * 64 / 1024),
        epochs=300,
        batch_size=64,
        augment=(Crop(4), Flip(), AutoAugment(), Cutout(16)),
    )


NAMES = {"digits": digits, "digits-dvs": digits_dvs, "mnist": mnist, "cifar10": cifar10}


def get(name: str) -> Recipe:
    """The recipe of that name; RecipeError with the nearest names if there is none."""
    from .recipe import RecipeError, nearest

    if name not in NAMES:
        raise RecipeError(f"unknown recipe {name!r}{nearest(name, NAMES)}")
    return replace(NAMES[name](), name=name)
