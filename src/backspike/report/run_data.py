"""A run as read: its log, the arrays of its `evaluation.npz`, and what may be asked of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_NUMBER = 1e30


class Array(NamedTuple):
    """An array of `evaluation.npz` as a section wants it: its axes, "*" for any further ones, and kinds of dtypes."""

    axes: str
    kinds: str = "biuf"


ARRAYS = {"classes": Array("K", "Uiu"), "layer_names": Array("L", "Uiu")}


@dataclass(frozen=True)
class RunData:
    path: Path
    name: str
    fields: dict[str, Any]
    env: dict[str, Any]
    epochs: list[dict[str, Any]]
    done: dict[str, Any]
    initial: dict[str, Any]
    resumed: int
    watched: list[dict[str, Any]]
    arrays: dict[str, np.ndarray] = field(repr=False)
    anytime: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def x(self) -> np.ndarray:
        return np.array([epoch["epoch"] for epoch in self.epochs], float)

    def series(self, key: str) -> np.ndarray:
        """One number per epoch, nan where there is none."""
        return np.array([number(epoch.get(key)) for epoch in self.epochs], float)

    def per_layer(self, key: str) -> dict[str, np.ndarray]:
        """One series per name in the dicts that the epochs hold under `key`."""
        dicts = [as_dict(epoch.get(key)) for epoch in self.epochs]
        names = dict.fromkeys(name for values in dicts for name in values)
        return {name: np.array([number(values.get(name)) for values in dicts]) for name in names}

    @property
    def simulated(self) -> bool:
        return "simulated" in str(self.env.get("data_note")).lower()

    @property
    def seconds(self) -> float:
        return (
            number(self.done.get("seconds"))
            if self.done
            else float(np.nansum(self.series("seconds"))) or math.nan
        )

    @property
    def best_epoch(self) -> float:
        """The epoch of the best validation accuracy, by the log's own word if it has one."""
        validation = self.series("validation_accuracy")
        if math.isfinite(said := number(self.done.get("best_epoch"))):
            return said
        return (
            float(self.x[np.nanargmax(validation)]) if np.isfinite(validation).any() else math.nan
        )


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
    """A float; the mean of a list (a value per channel); nan for everything else, and for what no measurement gives."""
    if isinstance(value, list):
        return float(np.mean([number(item) for item in value])) if value else math.nan
    known = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    )
    return float(value) if known else math.nan


def numbers(values: Any) -> list[float]:
    """A list of finite numbers; empty for anything else."""
    numbers = [number(v) for v in values] if isinstance(values, list) else []
    return numbers if all(map(math.isfinite, numbers)) else []


def is_curve(c: Any) -> bool:
    """Whether it is a curve as `anytime.Curve` has it."""
    keys = ("threshold", "validation_steps", "validation_accuracy", "steps", "accuracy")
    if not isinstance(c, dict) or not all(numbers(c.get(key)) for key in keys):
        return False
    return (
        len({len(c[key]) for key in keys}) == 1
        and isinstance(c.get("chosen"), int)
        and 0 <= c["chosen"] < len(c["steps"])
    )


def class_names(run: RunData) -> list[str]:
    known = [k for k in ("confusion", "sample_logits") if k in run.arrays]
    count = run.arrays[known[0]].shape[-1] if known else 0
    return [str(name) for name in run.arrays.get("classes", range(count))]


def layer_names(run: RunData) -> list[str]:
    known = [k for k in ("firing_rate", "support_share", "membrane_counts") if k in run.arrays]
    count = run.arrays[known[0]].shape[0] if known else 0
    return [str(name) for name in run.arrays.get("layer_names", range(count))]
