"""Timesteps for a stream: from recordings, arrays, and lines of events or frames.

`read` tells the formats apart: recordings and `.npy` arrays by their names, anything else is text.
A line of text is an event `t x y p` (microseconds, column, row, polarity 0 or 1) or a frame, a JSON
array with the shape of a timestep. Text is read as it comes, so it may be endless; recordings are
read whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from .. import data
from ..data.events import counting
from ..data.formats import Events, npy, read_file
from ..data.formats.event_file import SUFFIXES, read_events
from ..data.frames import By
from ..data.own import OwnSource, of_sensor
from ..errors import DataError, UsageError
from ..recipes.recipe import Recipe
from ..system.files import read_json

RECORDINGS = {*SUFFIXES} - {".npy", ".txt"}
LONGEST_LINE = 1 << 26  # bytes
LONGEST_GAP = 1 << 20  # windows without an event, beyond which a time is taken for damage
_EVENT = re.compile(rb"\s*(-?\d{1,18})[\s,]+(\d{1,9})[\s,]+(\d{1,9})[\s,]+([01])\s*")


def read(events: str, stdin: BinaryIO, recipe: Recipe, window: int | None) -> Iterator[np.ndarray]:
    """The timesteps in a file, or in standard input if `events` is "-"; float32.

    window: microseconds of a timestep; None: the events of a recording are cut into the recipe's T
    bins, as in training. Raises DataError for damage, after the timesteps before it in a text, and
    UsageError where `window` is missing.
    """
    path = Path(events)
    if events != "-" and path.suffix == ".npy":
        array = npy.decode(read_file(path), events)
        if array.dtype.kind not in "fiub" or array.ndim < 2:
            raise DataError(f"{events}: expected frames [T, ...], got {array.dtype} {array.shape}")
        return (frame.astype(np.float32) for frame in array)
    if events != "-" and path.suffix.lower() in RECORDINGS:
        recorded = read_events(path, upright=recipe.upright)
        counter = Counter.of(recipe)
        window = window or counter.window
        if window is None:
            return iter(counter.count(recorded, recipe.T).astype(np.float32))
        return counter.cut(iter([(events, recorded)]), window)
    return _text(events, stdin, recipe, window)


@dataclass(frozen=True)
class Counter:
    """Counts events by pixel and polarity, or by channel, as the frames of a recipe.

    source: the data set, whose T timesteps may be of a fixed duration. window: microseconds of a
    timestep of recordings that are cut into windows of T timesteps; None for all others.
    """

    source: data.Source
    recipe: Recipe
    window: int | None = None

    @staticmethod
    def of(recipe: Recipe) -> Counter:
        """Raises DataError if the recipe's data are not events."""
        name = recipe.data if isinstance(recipe.data, str) else "data of your own"
        source = data.source(name) if name == recipe.data else None
        if source is None or source.kind != "events":
            raise DataError(
                f"the network was trained on {name}, which are not recordings of events; "
                "give it frames, as lines of JSON or as a .npy file"
            )
        if not isinstance(source, OwnSource):
            return Counter(source, recipe)
        source = of_sensor(source, recipe.sensor, recipe.window)
        return Counter(source, recipe, source.window and max(1, source.window // recipe.T))

    def count(self, events: Events, T: int) -> np.ndarray:
        """`[T, ...]`; of a single timestep, all events."""
        source = self.source if T > 1 else replace(self.source, window=None)
        _, count = counting(source, T, self.recipe.size or None, cast(By, self.recipe.by))
        return count(events)

    def cut(self, parts: Iterator[tuple[str, Events]], window: int) -> Iterator[np.ndarray]:
        """A frame for each window, from the first event on. parts: with each its place in the file.

        Raises DataError for an event before the window of those in earlier parts.
        """
        waiting: list[Events] = []
        end: int | None = None
        for where, part in parts:
            if not len(part):
                continue
            if len(part) > 1 and (np.diff(part.t) < 0).any():
                part = _select(part, np.argsort(part.t, kind="stable"))
            end = int(part.t[0]) + window if end is None else end
            if part.t[0] < end - window:
                raise DataError(f"{where}: an event at {part.t[0]} us comes after later ones")
            if (part.t[-1] - end) // window > LONGEST_GAP + len(part):
                raise DataError(f"{where}: no event for more than {LONGEST_GAP} timesteps")
            while part.t[-1] >= end:
                inside = int(np.searchsorted(part.t, end))
                yield self._frame([*waiting, _select(part, slice(inside))], where)
                waiting, part, end = [], _select(part, slice(inside, None)), end + window
            waiting.append(part)
        if waiting:
            yield self._frame(waiting, "the last timestep")

    def _frame(self, parts: list[Events], where: str) -> np.ndarray:
        joined = Events(*(np.concatenate([getattr(e, f) for e in parts]) for f in "xytp"))
        try:
            return self.count(joined, 1)[0].astype(np.float32)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def _select(e: Events, part: slice | np.ndarray) -> Events:
    return Events(e.x[part], e.y[part], e.t[part], e.p[part])


# ---- text ----------------------------------------------------------------------------------------


def _text(events: str, stdin: BinaryIO, recipe: Recipe, window: int | None) -> Iterator[np.ndarray]:
    name = "standard input" if events == "-" else events
    with nullcontext(stdin) if events == "-" else open(events, "rb") as file:
        lines = _lines(file, name)
        first = next(lines, None)
        if first is None:
            raise DataError(f"{name} is empty: expected lines of events or frames")
        everything = chain([first], lines)
        if first[1].lstrip().startswith(b"["):
            yield from (_frame(*line) for line in everything)
            return
        if window is None:
            raise UsageError("events as text need --window, the microseconds of a timestep")
        counter = Counter.of(recipe)
        yield from counter.cut((_event(*line) for line in everything), window)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank, each with its place, as they come."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(f"{name}: line {number}: longer than {LONGEST_LINE} bytes")
        if line.strip():
            yield f"{name}: line {number}", line


def _frame(where: str, line: bytes) -> np.ndarray:
    try:
        return np.asarray(read_json(line), np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: not a frame, a JSON array of numbers (truncated or damaged): {error}"
        ) from error


def _event(where: str, line: bytes) -> tuple[str, Events]:
    match = _EVENT.fullmatch(line)
    if match is None:
        raise DataError(
            f"{where}: {line[:60]!r} is not an event: four whole numbers t x y p, "
            "with p 0 or 1 (truncated or damaged)"
        )
    t, x, y, p = np.array([[int(part)] for part in match.groups()])
    return where, Events(x, y, t, p)
