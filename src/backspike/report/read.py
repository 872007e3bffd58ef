"""A run folder read into a `RunData`. Run folders are untrusted input: everything is checked."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ReportError
from ..system.files import read_arrays, read_json
from .html import MAX_LAYERS, MAX_NUMBER

logger = logging.getLogger("backspike")

# The arrays of evaluation.npz and their axes; "*" stands for any further axes.
AXES = {
    "classes": "K",
    "confusion": "K K",
    "layer_names": "L",
    "firing_rate": "L T",
    "support_share": "L T",
    "membrane_counts": "L bins",
    "membrane_edges": "edges",
    "surrogate_z": "M",
    "surrogate_h": "L M",
    "accuracy_over_time": "T",
    "sample_x": "S frames *",
    "sample_y": "S",
    "sample_logits": "S T K",
    "readout_weights": "T",
    "spikes_per_image": "L",
    **{
        f"op_{key}": "E"
        for key in ("name", "kind", "steps", "macs", "additions", "products", "spikes", "weights")
    },
    **{f"op_{key}": "E" for key in ("inputs", "outputs", "bits")},
    "op_samples": "",
}

# Their dtype kinds where they are not any numbers: names, and counts that are added up.
KINDS = {
    **{"classes": "Uiu", "layer_names": "Uiu", "op_name": "U", "op_kind": "U"},
    "confusion": "iu",
    "membrane_counts": "iu",
    "sample_y": "iu",
    "op_samples": "iu",
}


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


def load_run(path: Path) -> RunData:
    path = Path(path)
    if not path.is_dir():
        raise ReportError(
            f"{path}: no such run folder; give the folder that `backspike train` wrote"
        )
    recipe = read_json_object(path / "recipe.json")
    env = read_json_object(path / "env.json") if (path / "env.json").exists() else {}
    epochs, done, initial, resumed, watched = read_log(path / "log.jsonl")
    fields = recipe.get("fields")
    if not isinstance(fields, dict):
        raise ReportError(
            f'{path / "recipe.json"}: has no "fields"; restore the file or train again'
        )
    name = str(recipe.get("name") or path.name)
    early, cure = (
        path / "anytime.json",
        "remove it, or write it again with `backspike eval --anytime`",
    )
    anytime = read_json_object(early, cure) if early.exists() else {}
    arrays = read_run_arrays(path / "evaluation.npz")
    return RunData(
        path, name, fields, env, epochs, done, initial, resumed, watched, arrays, anytime
    )


def read_json_object(path: Path, cure: str = "restore the file or train again") -> dict[str, Any]:
    try:
        value = read_json(path.read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; give a folder that `backspike train` wrote") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: damaged ({one_line(error)}); {cure}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: damaged (not a JSON object); {cure}")
    return value


def read_log(
    path: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], int, list[dict[str, Any]]]:
    """Epochs by number, the last word if the run is done, the network before training, how often the run was resumed, and
    what was watched.

    Torn lines are passed over.
    """
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ReportError(
            f"{path}: {error.strerror}; give a folder that `backspike train` wrote"
        ) from None
    epochs: dict[int, dict[str, Any]] = {}
    done: dict[str, Any] = {}
    initial: dict[str, Any] = {}
    watched: dict[int, dict[str, Any]] = {}
    resumed = read = damaged = 0
    for line in lines:
        try:
            entry = read_json(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            damaged += 1
            continue
        read, event = read + 1, entry.get("event")
        if event == "epoch" and isinstance(entry.get("epoch"), int):
            epochs[entry["epoch"]], done = entry, {}
        elif event == "done":
            done = entry
        elif event == "initial":
            initial = entry
        elif event == "watch" and isinstance(entry.get("epochs"), int):
            watched[entry["epochs"]] = entry
        resumed += event == "resumed"
    if len(lines) > 1 and not read:
        raise ReportError(f"{path}: damaged (no line is JSON); restore the file or train again")
    if damaged and done:  # in a run that is not, a kill may have torn the last one
        logger.warning(
            "%s: %d damaged lines left out; put back by: backspike resume %s",
            path,
            damaged,
            path.parent,
        )
    return (
        [epochs[number] for number in sorted(epochs)],
        done,
        initial,
        resumed,
        [watched[n] for n in sorted(watched)],
    )


def read_run_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        arrays = read_arrays(path)
        check(arrays)
    except (OSError, ValueError) as error:
        cure = "remove it, or write it again with `backspike eval`"
        raise ReportError(f"{path}: damaged ({one_line(error)}); {cure}") from None
    return arrays


def check(arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless the axes of all known arrays agree."""
    sizes: dict[str, int] = {}
    rasters = {name: "S T N" for name in arrays if name.startswith("sample_spikes_")}
    for name, text in (AXES | rasters).items():
        if name not in arrays:
            continue
        shape, axes = arrays[name].shape, text.replace(" *", "").split()
        if len(shape) < len(axes) or (len(shape) > len(axes) and "*" not in text):
            raise ValueError(f"{name} has shape {list(shape)}, expected [{text}]")
        for axis, size in zip(axes, shape):
            if axis != "N" and sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} along {axis}, other arrays have {sizes[axis]}")
    if empty := [axis for axis, size in sizes.items() if not size and axis not in "SL"]:
        raise ValueError(f"there is nothing along {empty[0]}")
    if sizes.get("L", 0) > MAX_LAYERS:
        raise ValueError(f"{sizes['L']} layers are more than {MAX_LAYERS}")
    for name in (set(AXES) | set(rasters)) & set(arrays):
        kinds, array = KINDS.get(name, "biuf"), arrays[name]
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"{name} is of type {array.dtype}")
        if (
            array.dtype.kind == "f"
            and array.size
            and np.nanmax(np.abs(array), initial=0) > MAX_NUMBER
        ):
            raise ValueError(f"{name} has numbers above {MAX_NUMBER:g}")
        if kinds == "iu" and array.size and (array.min() < 0 or array.max() >= 1 << 40):
            raise ValueError(f"{name} has numbers that count nothing")
    if {"edges", "bins"} <= set(sizes) and sizes["edges"] != sizes["bins"] + 1:
        raise ValueError(f"membrane_edges has {sizes['edges']} values for {sizes['bins']} bins")
    if not (np.diff(arrays.get("membrane_edges", np.arange(2.0))) > 0).all():
        raise ValueError("membrane_edges does not rise")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


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
    count = next(
        (run.arrays[k].shape[-1] for k in ("confusion", "sample_logits") if k in run.arrays), 0
    )
    return [str(name) for name in run.arrays.get("classes", range(count))]


def layer_names(run: RunData) -> list[str]:
    count = next(
        (
            run.arrays[k].shape[0]
            for k in ("firing_rate", "support_share", "membrane_counts")
            if k in run.arrays
        ),
        0,
    )
    return [str(name) for name in run.arrays.get("layer_names", range(count))]
