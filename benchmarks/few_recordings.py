"""Does MSG keep a deep network from over-fitting few event recordings?

    backspike study benchmarks/few_recordings.py:arms --seeds 2

ResNet18 with the neuron after the addition, at a quarter of its width, learns from 2,000 simulated
recordings of CIFAR-10 in 5 timesteps. Li et al. 2024 (arXiv 2406.19645), who gain most by MSG with
ResNet18 on DVS-CIFAR10, train the whole network in 10. The other fields are theirs, but for no
augmentation, so that it over-fits. Needs the files of CIFAR-10; all 60,000 recordings are simulated
once, which takes some six minutes on two cores.

For MSG and TWO in 40 epochs:

    backspike study ablation --data benchmarks/few_recordings.py:recipe --epochs 40
"""

from dataclasses import replace
from functools import cache

import numpy as np

import backspike as bs
from backspike.data.split import Split, Splits, stratified_order
from backspike.recipes.values import Mean

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
    return replace(bs.recipes.get("dvs-cifar10-resnet18"), **changes)


def arms() -> bs.study.Study:
    plain = {"neuron.surrogate": bs.Triangle(alpha=2.0), "readout": Mean(), "precision": "float32"}
    masked, less = (
        {"neuron.surrogate": bs.Masked(bs.Triangle(alpha=2.0), p=p)} for p in (0.5, 0.1)
    )
    return bs.study.Study(
        "few-recordings",
        "MSG in a deep network on few simulated event recordings",
        recipe().replace(plain),
        (
            bs.study.Arm("baseline"),
            bs.study.Arm("MSG", masked),
            bs.study.Arm("MSG p=0.1", less),
        ),
        "baseline",
        ("dots", "curves", "firing"),
    )
