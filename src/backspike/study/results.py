"""The numbers of a study, from its run folders: per run, per arm, and the gradients of figure 1.

Only finished runs count. Those without a folder are in `included.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import StudyError
from ..report.read import check
from ..run import Run
from ..system.files import read_arrays
from .spec import Job, Study
from .statistics import paired

if TYPE_CHECKING:
    from torch import Tensor

    from ..neuron.lif import LIF, Output


NUMBERS = ("last", "best", "spikes_per_image", "firing_rate", "seconds_per_epoch")


class Result(Protocol):
    """What tables need to know of a finished run; `numbers` has the keys `NUMBERS`."""

    @property
    def arm(self) -> str: ...

    @property
    def seed(self) -> int: ...

    def numbers(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Outcome:
    """The results of one finished run. Accuracies are in [0, 1]."""

    arm: str
    seed: int
    folder: Path
    done: dict[str, Any]
    epochs: list[dict[str, Any]]

    @staticmethod
    def read(job: Job) -> Outcome:
        """Reads the folder of a finished run. Raises StudyError if its log is not that of a run."""
        log = Run.open(job.folder).log()
        done, epochs = log[-1], [e for e in log if e.get("event") == "epoch"]
        if reason := _damage(done, epochs):
            raise StudyError(
                f"{job.folder / 'log.jsonl'} is damaged ({reason}); remove {job.folder} and run "
                "the study again"
            )
        return Outcome(job.arm, job.seed, job.folder, done, epochs)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `evaluation.npz`. Raises StudyError if the file is damaged."""
        path = self.folder / "evaluation.npz"
        try:
            arrays = read_arrays(path)
            check(arrays)
        except (OSError, ValueError) as e:
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        else:
            missing = [name for name in _ARRAYS if name not in arrays]
            if not missing:
                return arrays
            reason = f"{missing[0]} is missing"
        raise StudyError(
            f"{path} is damaged ({reason}); write it again with: backspike eval {self.folder}"
        )

    def numbers(self) -> dict[str, float]:
        """Test accuracies, spikes per image in the hidden layers, firing rate, and time."""
        spikes = float(self.arrays["spikes_per_image"].sum())
        images = self.arrays["confusion"].sum()
        return {
            "last": self.done["test_accuracy_last"],
            "best": self.done["test_accuracy"],
            "spikes_per_image": spikes,
            "firing_rate": spikes * images / max(self.arrays["membrane_counts"].sum(), 1),
            "seconds_per_epoch": statistics.median(e["seconds"] for e in self.epochs),
        }

    @cached_property
    def env(self) -> dict[str, Any]:
        """The content of `env.json`."""
        return Run(self.folder).read_json("env.json")

    @property
    def data_note(self) -> str:
        """What every result on its data must mention, such as "simulated"."""
        return str(self.env.get("data_note") or "")

    @property
    def machine(self) -> str:
        """Where it was trained."""
        env = self.env
        return (
            f"{env.get('device')}, {env.get('cpu')}, {env.get('threads')} threads per run, "
            f"torch {env.get('torch')}"
        )

    @property
    def entry(self) -> dict[str, Any]:
        """Its part of study.json."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "machine": self.machine,
            "data_note": self.data_note,
            **self.numbers(),
            **self.done,
            "run": f"runs/{self.arm}/{self.folder.name}",
        }

    def series(self, key: str) -> np.ndarray:
        """A number of every epoch; nan where the log has none."""
        return np.array([math.nan if e.get(key) is None else e[key] for e in self.epochs], float)


_ARRAYS = (
    *("confusion", "spikes_per_image", "firing_rate"),
    *("layer_names", "membrane_counts", "membrane_edges"),
)


def _damage(done: dict[str, Any], epochs: list[dict[str, Any]]) -> str:
    """Why these are not the events of a finished run; "" if they are."""
    if not epochs:
        return "it has no epochs"
    for name in ("test_accuracy", "test_accuracy_last"):
        if not is_number(done.get(name)):
            return f"the event done has no {name}"
    series = ("loss", "train_accuracy", "validation_accuracy")
    for i, epoch in enumerate(epochs, 1):
        if not is_number(epoch.get("seconds")):
            return f"epoch {i} has no seconds"
        for name in series:
            if epoch.get(name) is not None and not is_number(epoch[name]):
                return f"{name} of epoch {i} is not a number"
        weights, widths = epoch.get("readout_weights"), epoch.get("widths")
        if not (weights is None or (isinstance(weights, list) and all(map(is_number, weights)))):
            return f"readout_weights of epoch {i} are not numbers"
        if widths is not None and not (
            isinstance(widths, dict) and all(map(is_number, widths.values()))
        ):
            return f"widths of epoch {i} are not numbers"
    return ""


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KINDS = {"last": "last epoch", "best": "best by validation"}


def summary(study: Study, outcomes: Sequence[Result]) -> list[dict[str, Any]]:
    """Per arm: values by seed, mean, standard deviation, and the paired comparisons."""
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
                common = [seed for seed in runs if seed in by_arm[other]]
                pairs = [runs[s][kind] for s in common], [by_arm[other][s][kind] for s in common]
                row[kind]["difference"] = paired(*pairs)._asdict() if common else None
        for key in ("firing_rate", "spikes_per_image", "seconds_per_epoch"):
            row[key] = _mean([r[key] for r in runs.values()])
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


# ---- the gradients of figure 1 ---------------------------------------------------------------


def gradient_shares(study: Study, outcome: Outcome, samples: int = 16) -> list[dict[str, Any]]:
    """Compares the arms' surrogates at the same potentials, those of one trained network.

    Returns a dict per arm with the same model as the outcome. neurons: share with h > 0. weights:
    mean share of the hidden weights that receive a non-zero gradient from one sample;
    `weights_batch`, from all samples together. histogram: shares of h relative to its peak in 20
    bins, of which bin 0 is h = 0.
    """
    import torch
    from torch.nn import functional as F

    from ..data.batches import Batches
    from ..neuron.hooks import record, spiking_layers
    from ..train import setup
    from ..train.network import Network, trained

    run = Run.open(outcome.folder)
    _, recipe, network = trained(run, recipe=study.base)
    weights = network.state_dict()
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
        # the weights contain no learned width, which stays 1
        network.load_state_dict(weights, strict=False)
        network.eval()
        hidden = [p for p in network.model.parameters() if p.dim() > 1][:-1]
        layers = spiking_layers(network.model)
        reached = []
        for i in [None, *range(len(y))]:
            part = slice(None) if i is None else slice(i, i + 1)
            with record(network.model) as recorded:
                loss = F.cross_entropy(network(x[:, part]), y[part])
            grads = torch.autograd.grad(loss, hidden)
            nonzero = sum(int((g != 0).sum()) for g in grads)
            reached.append(nonzero / sum(g.numel() for g in grads))
            if i is None:
                with torch.no_grad():
                    h = torch.cat([_relative(layers[name], out) for name, out in recorded.items()])
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
    """h relative to its peak at an output's potentials, with the mask of that pass, flattened."""
    from torch import Tensor

    from ..analysis import activity
    from ..kernel import dropped

    z = activity.distance(layer, out)
    h = activity.derivative(layer, z) / activity.derivative(layer, z.new_zeros(z.shape))
    if isinstance(layer.mask_p, Tensor) and layer.seed is not None:
        h = h * ~dropped(layer.seed, z.shape, layer.mask_p)
    return h.flatten()
