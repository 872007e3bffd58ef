"""Answers before the last timestep: accuracy after 1 ... T steps, and early exit where the network is sure.

The answer after t steps is `measure.answers_over_time`: of `Mean` the mean of the outputs so far; of `Last` the output at t; of
`TWO` the mean so far of the outputs, each times its weight, the weights as they were learned for all T. A sample exits at the
first step at which its confidence reaches a threshold, at T at the latest. The threshold is chosen on the validation split: the
one that needs the fewest steps among those with no more mistakes there than after all T. The test set chooses nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batches import Batches
from .activity import answers_over_time

THRESHOLDS = 101  # points of a curve: quantiles of the confidences on the validation split


def confidence(answers: Tensor) -> Tensor:
    """The largest softmax, `[..., K]` to `[...]`."""
    return answers.softmax(-1).amax(-1)


def margin(answers: Tensor) -> Tensor:
    """The largest softmax less the second largest, `[..., K]` to `[...]`."""
    two = answers.softmax(-1).topk(2).values
    return two[..., 0] - two[..., 1]


MEASURES = {"confidence": confidence, "margin": margin}


@dataclass(frozen=True)
class Split:
    """Of all samples after each step, `[T, N]`: whether the answer is right, and how sure the network is, by measure."""

    right: Tensor
    sure: dict[str, Tensor]

    def accuracy(self) -> list[float]:
        """If all samples stop after 1, 2, ... T steps."""
        return self.right.double().mean(1).tolist()

    def exits(self, measure: str, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean steps and accuracy, `[H]`, if each sample stops where it is as sure as the threshold."""
        steps, accuracy = [], []
        for threshold in thresholds:
            reached = self.sure[measure] >= threshold
            reached[-1] = True
            at = reached.int().argmax(0)
            steps.append((at + 1).double().mean())
            accuracy.append(self.right.gather(0, at[None])[0].double().mean())
        return torch.stack(steps), torch.stack(accuracy)


@dataclass(frozen=True)
class Curve:
    """Early exit by one measure of confidence: points by threshold, and the number of the chosen one."""

    threshold: list[float]
    validation_steps: list[float]
    validation_accuracy: list[float]
    steps: list[float]  # of the test set, as is accuracy
    accuracy: list[float]
    chosen: int


@torch.no_grad()
def split(network: Any, batches: Batches) -> Split:
    """Runs a data set through the network."""
    network.eval()
    right, sure = [], []
    for x, y in batches.in_order():
        with batches.autocast():
            o = network.model(x).float()
        answers = answers_over_time(o, network.readout)
        right.append((answers.argmax(-1) == y).cpu())
        sure.append({name: of(answers).double().cpu() for name, of in MEASURES.items()})
    return Split(
        torch.cat(right, 1), {name: torch.cat([s[name] for s in sure], 1) for name in MEASURES}
    )


def curve(validation: Split, test: Split, measure: str) -> Curve:
    """Thresholds at quantiles of the validation split, and one that nobody reaches before T."""
    quantiles = (
        validation.sure[measure]
        .flatten()
        .quantile(torch.linspace(0, 1, THRESHOLDS - 1, dtype=torch.float64))
    )
    thresholds = torch.cat((quantiles, torch.tensor([2.0], dtype=torch.float64)))
    steps, accuracy = validation.exits(measure, thresholds)
    as_good = (accuracy >= accuracy[-1]).nonzero().flatten()
    chosen = int(as_good[steps[as_good].argmin()])
    on_test = [a.tolist() for a in test.exits(measure, thresholds)]
    return Curve(
        thresholds.tolist(), steps.tolist(), accuracy.tolist(), on_test[0], on_test[1], chosen
    )


def measured(validation: Split, test: Split) -> dict[str, Any]:
    """What `anytime.json` holds; see docs/run-folder.md."""
    return {
        "validation_samples": validation.right.shape[1],
        "test_samples": test.right.shape[1],
        "validation_accuracy": validation.accuracy(),
        "accuracy": test.accuracy(),
        "exit": {name: asdict(curve(validation, test, name)) for name in MEASURES},
    }
