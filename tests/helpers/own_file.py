"""Shared by the tests: Python files of a user's, as `backspike train mine.py:recipe` takes them."""

from pathlib import Path

from helpers.paths import ROOT

EXAMPLE = ROOT / "examples/own_network.py"

# every part of the recipe is the file's own
ALL_OWN = '''
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import backspike as bs
from backspike.recipes.values import AdamW, Neuron


@dataclass(frozen=True)
class Tent:
    """A triangle of area 1."""

    width: float = 1.0

    def derivative(self, z):
        return (1 - z.abs() / self.width).clamp(min=0) / self.width

    def primitive(self, z):
        y = (z / self.width).clamp(-1, 1)
        return 0.5 + y - 0.5 * y * y.abs()


@dataclass(frozen=True)
class Louder:
    """An augmentation with an option."""

    by: float = 1.1

    def __call__(self, x):
        return x * self.by


class Points:
    """Two Gaussian blobs in the plane."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + 2 * (i % 2) - 1, i % 2


def shake(x):
    return x + 0.01 * torch.randn_like(x)


def make_data():
    return [Points(torch.randn(n, 2) * 0.3) for n in (64, 32, 32)]


def make_neuron(channels):
    return bs.LIF(v_threshold=0.5, surrogate=Tent(0.8))


def make_network(neuron):
    return nn.Sequential(
        bs.OverTime(nn.Linear(2, 16)), neuron(channels=16), bs.OverTime(nn.Linear(16, 2))
    )


def wide(neuron):
    return nn.Sequential(
        bs.OverTime(nn.Linear(2, 32)), neuron(channels=32), bs.OverTime(nn.Linear(32, 2))
    )


def fixed():
    return make_network(make_neuron)


def loss(o, logits, y):
    return F.cross_entropy(logits, y) + 1e-3 * o.square().mean()


def recipe():
    return bs.Recipe(
        model=make_network,
        data=make_data,
        neuron=make_neuron,
        loss=loss,
        augment=(shake, Louder(1.2)),
        optimizer=AdamW(lr=0.02),
        epochs=3,
        batch_size=16,
    )


def plain():
    return bs.Recipe(
        model=make_network,
        data=make_data,
        neuron=Neuron(v_threshold=0.5, surrogate=bs.Masked(Tent(0.8))),
        optimizer=AdamW(lr=0.02),
        epochs=2,
        batch_size=16,
    )


def arms():
    two = (bs.study.Arm("16"), bs.study.Arm("32", {"model": wide}))
    return bs.study.Study("widths", "Two widths.", plain(), two, "16", seeds=1)
'''


def write(folder: Path, text: str = ALL_OWN, name: str = "mine.py") -> Path:
    """A Python file of a user's."""
    path = folder / name
    path.write_text(text)
    return path


def width(recipe):
    """The size of the hidden layer in the network of these files."""
    return len(recipe.network()[0][0].weight)
