"""Reads a run folder into `RunData`. Run folders are untrusted input: everything is checked."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ReportError
from ..system.files import read_arrays, read_json, read_regular
from . import activity, results, run_data, samples
from .run_data import MAX_NUMBER, Array, RunData, as_dict

logger = logging.getLogger("backspike")

MAX_LAYERS = 1000
ARRAYS = run_data.ARRAYS | results.ARRAYS | activity.ARRAYS | samples.ARRAYS


def load_run(path: Path) -> RunData:
    """Reads and checks a run folder. Raises ReportError with a one-line message."""
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
    early = path / "anytime.json"
    hint = "remove it, or write it again with `backspike eval --anytime`"
    own = recipe.get("own")
    return RunData(
        path=path,
        name=name,
        fields=fields,
        env=env,
        epochs=epochs,
        done=done,
        initial=initial,
        resumed=resumed,
        watched=watched,
        arrays=read_run_arrays(path / "evaluation.npz"),
        anytime=read_json_object(early, hint) if early.exists() else {},
        own=[what for what in run_data.REPLACED if isinstance(own, list) and what in own],
        source=as_dict(recipe.get("source")),
    )


def read_json_object(path: Path, hint: str = "restore the file or train again") -> dict[str, Any]:
    try:
        value = read_json(read_regular(path))
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; give a folder that `backspike train` wrote") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: damaged ({one_line(error)}); {hint}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: damaged (not a JSON object); {hint}")
    return value


def read_log(
    path: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], int, list[dict[str, Any]]]:
    """Reads a log: epochs in order, the "done" event or {}, the "initial" event or {}, the number
    of resumes, and the "watch" events in order.

    Torn lines are skipped.
    """
    try:
        lines = read_regular(path).decode("utf-8", errors="replace").splitlines()
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
    if done and not epochs:
        raise ReportError(
            f"{path}: damaged (the run is done, but no epoch is logged); "
            "restore the file or train again"
        )
    if damaged and done:  # in an unfinished run, a kill may have torn the last line
        logger.warning(
            "%s: %d damaged lines left out; to repair the file: backspike resume %s",
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
        hint = "remove it, or write it again with `backspike eval`"
        raise ReportError(f"{path}: damaged ({one_line(error)}); {hint}") from None
    return arrays


def check(arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless the axes of all known arrays agree."""
    sizes: dict[str, int] = {}
    rasters = {name: Array("S T N") for name in arrays if name.startswith("sample_spikes_")}
    known = {name: wanted for name, wanted in (ARRAYS | rasters).items() if name in arrays}
    for name, wanted in known.items():
        shape, axes = arrays[name].shape, wanted.axes.replace(" *", "").split()
        if len(shape) < len(axes) or (len(shape) > len(axes) and "*" not in wanted.axes):
            raise ValueError(f"{name} has shape {list(shape)}, expected [{wanted.axes}]")
        for axis, size in zip(axes, shape):
            if axis != "N" and sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} along {axis}, other arrays have {sizes[axis]}")
    if empty := [axis for axis, size in sizes.items() if not size and axis not in "SL"]:
        raise ValueError(f"axis {empty[0]} is empty")
    if sizes.get("L", 0) > MAX_LAYERS:
        raise ValueError(f"{sizes['L']} layers, more than {MAX_LAYERS}")
    for name, (_, kinds) in known.items():
        array = arrays[name]
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"{name} is of type {array.dtype}")
        if array.dtype.kind == "U":
            check_characters(name, array)
        if (
            array.dtype.kind == "f"
            and array.size
            and np.nanmax(np.abs(array), initial=0) > MAX_NUMBER
        ):
            raise ValueError(f"{name} has numbers above {MAX_NUMBER:g}")
        if kinds == "iu" and array.size and (array.min() < 0 or array.max() >= 1 << 40):
            raise ValueError(f"{name} has numbers that are no counts")
    if {"edges", "bins"} <= set(sizes) and sizes["edges"] != sizes["bins"] + 1:
        raise ValueError(f"membrane_edges has {sizes['edges']} values for {sizes['bins']} bins")
    if not (np.diff(arrays.get("membrane_edges", np.arange(2.0))) > 0).all():
        raise ValueError("membrane_edges is not increasing")


def check_characters(name: str, array: np.ndarray) -> None:
    """Raises ValueError for strings that are not Unicode, for which numpy may raise SystemError."""
    characters = np.frombuffer(array.tobytes(), f"{array.dtype.str[0]}u4")
    if characters.max(initial=0) > sys.maxunicode:
        raise ValueError(f"{name} has characters that are not Unicode")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
