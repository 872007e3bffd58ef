"""The contents of a run folder: log, recipe, environment and the arrays of `evaluation.npz`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_NUMBER = 1e30


class Array(NamedTuple):
    """The expected form of an array of `evaluation.npz`.

    axes: names of the axes, "*" for any further ones. kinds: allowed kinds of numpy dtypes.
    """

    axes: str
    kinds: str = "biuf"


# recipe fields that the user's own model or data replaces; names with a dot are nested
REPLACED = {
    "model": ("model", "neuron", "norm"),
    "data": ("data", "root", "limit", "size", "upright", "speaker", "by"),
    "scheduler": ("schedule", "warmup_epochs"),
}
ARRAYS = {"classes": Array("K", "Uiu"), "layer_names": Array("L", "Uiu")}


@dataclass(frozen=True)
class RunData:
    """Everything read from a run folder.

    epochs: the log's epoch events in order. done: the event of a finished run, else empty.
    initial: the event before training. resumed: number of resumes. watched: events of
    `watch=True`. own: which of "model" and "data" the user passed to `fit`.
    """

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
    own: Sequence[str] = ()
    source: dict[str, Any] = field(default_factory=dict)  # the Python file that made the recipe

    @property
    def used_fields(self) -> dict[str, Any]:
        """The recipe's fields, without those that the user's own model or data replaced."""
        fields = dict(self.fields)
        for what in self.own:
            for key in self.fields:
                if key.split(".")[0] in REPLACED[what]:
                    del fields[key]
        return {what: f"own {what}" for what in self.own} | fields

    @property
    def file(self) -> str:
        """The Python file and function that made the recipe, "mine.py:recipe"; "" if none did."""
        return f"{self.source.get('file')}:{self.source.get('function')}" if self.source else ""

    @property
    def x(self) -> np.ndarray:
        """The epoch numbers as shown, from 1; in the log they start at 0."""
        return np.array([1 + epoch["epoch"] for epoch in self.epochs], float)

    def series(self, key: str) -> np.ndarray:
        """One number per epoch, nan where it is missing."""
        return np.array([number(epoch.get(key)) for epoch in self.epochs], float)

    def per_layer(self, key: str) -> dict[str, np.ndarray]:
        """One series per layer, from the dicts that the epochs hold under `key`."""
        dicts = [as_dict(epoch.get(key)) for epoch in self.epochs]
        names = dict.fromkeys(name for values in dicts for name in values)
        return {name: np.array([number(values.get(name)) for values in dicts]) for name in names}

    @property
    def simulated(self) -> bool:
        return "simulated" in str(self.env.get("data_note")).lower()

    @property
    def seconds(self) -> float:
        """Total training time; nan if the log does not have it."""
        return (
            number(self.done.get("seconds"))
            if self.done
            else float(np.nansum(self.series("seconds"))) or math.nan
        )

    @property
    def has_validation(self) -> bool:
        values = [*self.series("validation_accuracy"), number(self.done.get("validation_accuracy"))]
        return any(map(math.isfinite, values))

    @property
    def best_epoch(self) -> float:
        """The epoch with the best validation accuracy, from 1; nan without a validation set."""
        validation = self.series("validation_accuracy")
        if not self.has_validation:
            return math.nan
        if math.isfinite(logged := number(self.done.get("best_epoch"))):
            return 1 + logged
        return (
            float(self.x[np.nanargmax(validation)]) if np.isfinite(validation).any() else math.nan
        )


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float:
    """A float; the mean of a list (one value per channel); nan for anything else or above 1e30."""
    if isinstance(value, list):
        return float(np.mean([number(item) for item in value])) if value else math.nan
    known = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    )
    return float(value) if known else math.nan


def numbers(values: Any) -> list[float]:
    """The list itself if all its numbers are finite, else an empty list."""
    numbers = [number(v) for v in values] if isinstance(values, list) else []
    return numbers if all(map(math.isfinite, numbers)) else []


def is_curve(c: Any) -> bool:
    """Whether `c` has the form of an `early_exit.Curve`."""
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
