"""From the run folders of a study to numbers: what each run says, what the arms say together, and the gradients of figure 1.

Only finished runs count, and only what their folders hold; nothing is remembered from training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..run import Run
from ..system.files import read_arrays
from .spec import Job, Study
from .statistics import paired

if TYPE_CHECKING:
    from torch import Tensor

    from ..neuron.lif import LIF, Output


@dataclass(frozen=True)
class Outcome:
    """What one finished run folder says. Accuracies in [0, 1]; spikes per image over the hidden layers on the test set."""

    arm: str
    seed: int
    folder: Path
    done: dict[str, Any]
    epochs: list[dict[str, Any]]

    @staticmethod
    def read(job: Job) -> Outcome:
        log = Run.open(job.folder).log()
        return Outcome(
            job.arm, job.seed, job.folder, log[-1], [e for e in log if e.get("event") == "epoch"]
        )

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        return read_arrays(self.folder / "evaluation.npz")

    def numbers(self) -> dict[str, float]:
        spikes = float(self.arrays["spikes_per_image"].sum())
        images = self.arrays["confusion"].sum()
        return {
            "last": self.done["test_accuracy_last"],
            "best": self.done["test_accuracy"],
            "spikes_per_image": spikes,
            "firing_rate": spikes * images / max(self.arrays["membrane_counts"].sum(), 1),
            "seconds_per_epoch": statistics.median(e["seconds"] for e in self.epochs),
        }

    def series(self, key: str) -> np.ndarray:
        return np.array([math.nan if e.get(key) is None else e[key] for e in self.epochs], float)


KINDS = {"last": "last epoch", "best": "best by validation"}


def summary(study: Study, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Per arm: values by seed, mean, standard deviation, and the paired comparison of both accuracies."""
    by_arm = {
        arm.name: {o.seed: o.numbers() for o in outcomes if o.arm == arm.name} for arm in study.arms
    }
    rows = []
    for arm in study.arms:
        runs, other = by_arm[arm.name], study.compared(arm)
        row: dict[str, Any] = {
            "arm": arm.name,
            "against": other,
            "n": len(runs),
            "x": arm.x,
            "line": arm.line,
        }
        for kind in KINDS:
            values = [r[kind] for r in runs.values()]
            row[kind] = {
                "values": values,
                "mean": _mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
            if other is not None:
                both = [seed for seed in runs if seed in by_arm[other]]
                pairs = [runs[s][kind] for s in both], [by_arm[other][s][kind] for s in both]
                row[kind]["difference"] = paired(*pairs)._asdict() if both else None
        for key in ("firing_rate", "spikes_per_image", "seconds_per_epoch"):
            row[key] = _mean([r[key] for r in runs.values()])
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# ---- the gradients of figure 1 -------------------------------------------------------------------------------------------


def gradient_shares(study: Study, outcome: Outcome, samples: int = 16) -> list[dict[str, Any]]:
    """What the surrogate of every arm does at the same potentials: those of one trained network, with its own weights.

    neurons: share with h > 0. weights: share of the hidden weights that get a non-zero gradient from one sample, on average,
    and `weights_batch` from all of them together. histogram: shares of h, relative to its peak, in 20 bins; bin 0 is h = 0.
    """
    import torch
    from torch.nn import functional as F

    from .. import train
    from ..data.batches import Batches
    from ..neuron.hooks import record, spiking_layers
    from ..train import setup
    from ..train.network import Network

    recipe = Run.open(outcome.folder).recipe()
    weights = train.load(outcome.folder).state_dict()
    batches = Batches(setup.load_data(recipe).train, recipe, torch.device("cpu"))
    x, y = batches.take(torch.arange(min(samples, len(batches.data))))
    rows = []
    for arm in study.arms:
        changed = study.recipe(arm)
        if changed.model != recipe.model:
            continue
        torch.manual_seed(0)
        network = Network(
            replace(recipe, neuron=changed.neuron).network(), recipe.readout.build(recipe.T)
        )
        # a learned width is not among the weights: it stays 1
        network.load_state_dict(weights, strict=False)
        network.eval()
        hidden = [p for p in network.model.parameters() if p.dim() > 1][:-1]
        layers = spiking_layers(network.model)
        reached = []
        for i in [None, *range(len(y))]:
            part = slice(None) if i is None else slice(i, i + 1)
            with record(network.model) as seen:
                loss = F.cross_entropy(network(x[:, part]), y[part])
            got = torch.autograd.grad(loss, hidden)
            reached.append(sum(int((g != 0).sum()) for g in got) / sum(g.numel() for g in got))
            if i is None:
                with torch.no_grad():
                    h = torch.cat([_relative(layers[name], out) for name, out in seen.items()])
        counts = torch.histc(h[h > 0], 19, 0.0, 1.0) / h.numel()
        zero = float((h <= 0).float().mean())
        rows.append(
            {
                "arm": arm.name,
                "x": arm.x,
                "line": arm.line,
                "neurons": 1 - zero,
                "weights": statistics.fmean(reached[1:]),
                "weights_batch": reached[0],
                "histogram": [zero, *counts.tolist()],
            }
        )
    return rows


def _relative(layer: LIF, out: Output) -> Tensor:
    """h relative to its peak, at the potentials of an output and under the mask of that pass, flat."""
    from torch import Tensor

    from ..analysis import activity
    from ..kernel import dropped

    z = activity.distance(layer, out)
    h = activity.derivative(layer, z) / activity.derivative(layer, z.new_zeros(z.shape))
    if isinstance(layer.mask_p, Tensor) and layer.seed is not None:
        h = h * ~dropped(layer.seed, z.shape, layer.mask_p)
    return h.flatten()
