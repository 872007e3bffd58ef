"""Answers before the last timestep: accuracy after 1 ... T steps, and early exit when confident.

The answer after t steps is `activity.answers_over_time`. With `Mean` it is the mean of the outputs
so far; with `Last`, the output at t; with `TWO`, the mean so far of the weighted outputs, with the
weights that were learned for all T. A sample exits at the first step at which its confidence
reaches a threshold, at T at the latest. The threshold is chosen on the validation split: the one
with the fewest steps among those that make no more mistakes there than after all T steps. The test
set plays no part in choosing it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.batches import Batches
from .activity import answers_over_time

# points of a curve, at quantiles of the confidences on the validation split
THRESHOLDS = 101


def confidence(answers: Tensor) -> Tensor:
    """The largest softmax, `[..., K]` to `[...]`."""
    return answers.softmax(-1).amax(-1)


def margin(answers: Tensor) -> Tensor:
    """The largest softmax minus the second largest, `[..., K]` to `[...]`."""
    two = answers.softmax(-1).topk(2).values
    return two[..., 0] - two[..., 1]


MEASURES = {"confidence": confidence, "margin": margin}


def exit_at(sure: Tensor, threshold: Tensor | float) -> Tensor:
    """The first step at which each sample reaches the threshold, else the last; [T, N] to [N]."""
    reached = sure >= threshold
    reached[-1] = True
    return reached.int().argmax(0)


@dataclass(frozen=True)
class Split:
    """The answers to all N samples of a split after each of T steps."""

    # [T, N]: whether the answer is right
    right: Tensor
    # [T, N] by measure: how confident the network is
    sure: dict[str, Tensor]

    def accuracy(self) -> list[float]:
        """The accuracy if all samples stop after 1, 2, ... T steps."""
        return self.right.double().mean(1).tolist()

    def exits(self, measure: str, thresholds: Tensor) -> tuple[Tensor, Tensor]:
        """Mean steps and accuracy, `[H]`, if samples exit once they reach the threshold."""
        steps, accuracy = [], []
        for threshold in thresholds:
            at = exit_at(self.sure[measure], threshold)
            steps.append((at + 1).double().mean())
            accuracy.append(self.right.gather(0, at[None])[0].double().mean())
        return torch.stack(steps), torch.stack(accuracy)


@dataclass(frozen=True)
class Curve:
    """Early exit by one measure of confidence, a point per threshold."""

    threshold: list[float]
    validation_steps: list[float]
    validation_accuracy: list[float]
    # on the test set
    steps: list[float]
    accuracy: list[float]
    # index of the chosen threshold
    chosen: int


@torch.no_grad()
def split(network: Any, batches: Batches) -> Split:
    """Runs all samples of `batches` through the network."""
    network.eval()
    right, sure = [], []
    for x, y in batches.in_order():
        with batches.autocast():
            o = network.model(x).float()
        answers = answers_over_time(o, network.readout)
        right.append((answers.argmax(-1) == y).cpu())
        sure.append({name: f(answers).double().cpu() for name, f in MEASURES.items()})
    return Split(
        torch.cat(right, 1), {name: torch.cat([s[name] for s in sure], 1) for name in MEASURES}
    )


def curve(validation: Split, test: Split, measure: str) -> Curve:
    """The curve for one of `MEASURES`.

    Thresholds are quantiles of the validation split, and one that no sample reaches before T.
    """
    shares = torch.linspace(0, 1, THRESHOLDS - 1, dtype=torch.float64)
    quantiles = validation.sure[measure].flatten().quantile(shares)
    thresholds = torch.cat((quantiles, torch.tensor([2.0], dtype=torch.float64)))
    steps, accuracy = validation.exits(measure, thresholds)
    as_good = (accuracy >= accuracy[-1]).nonzero().flatten()
    chosen = int(as_good[steps[as_good].argmin()])
    on_test = [a.tolist() for a in test.exits(measure, thresholds)]
    return Curve(
        thresholds.tolist(), steps.tolist(), accuracy.tolist(), on_test[0], on_test[1], chosen
    )


def measured(validation: Split, test: Split) -> dict[str, Any]:
    """The content of `anytime.json`; see docs/run-folder.md."""
    return {
        "validation_samples": validation.right.shape[1],
        "test_samples": test.right.shape[1],
        "validation_accuracy": validation.accuracy(),
        "accuracy": test.accuracy(),
        "exit": {name: asdict(curve(validation, test, name)) for name in MEASURES},
    }
