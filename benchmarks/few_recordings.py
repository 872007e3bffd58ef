"""A deep network on few event recordings: the recipe in which Li et al. 2024 gain most by MSG.

    backspike study ablation --data benchmarks/few_recordings.py:recipe --seeds 6

ResNet18 with the neuron after the addition, at a quarter of its width, learns from 2,000 simulated
recordings of CIFAR-10 in 5 timesteps; the paper (arXiv 2406.19645) trains the whole ResNet18 on
DVS-CIFAR10 in 10. The other fields are the paper's, but for fewer epochs and no augmentation, so
that overfitting shows within 40 epochs. Needs the files of CIFAR-10; all 60,000 recordings are
simulated once, which takes some six minutes on two cores.
"""

from dataclasses import replace
from functools import cache

import numpy as np

import backspike as bs
from backspike.data.split import Split, Splits, stratified_order

TRAIN, VALIDATION, TEST = 2_000, 500, 2_000


@cache
def few(T: int, size: int) -> Splits:
    sets = bs.data.load("cifar10-dvs-simulated", T=T, size=size)
    return replace(
        sets,
        train=_first(sets.train, TRAIN),
        validation=_first(sets.validation, VALIDATION),
        test=_first(sets.test, TEST),
    )


def _first(split: Split, n: int) -> Split:
    """The first n samples of the stratified order."""
    return split.take(np.sort(stratified_order(split.y, seed=0)[:n]))


def recipe() -> bs.Recipe:
    model = bs.models.ResNet18(in_channels=2, width=16)
    changes = {"name": "few-recordings", "data": few, "T": 5, "model": model, "augment": ()}
    return replace(bs.recipes.get("dvs-cifar10-resnet18"), **changes, epochs=40)
