"""Frames: events counted in T slices of a recording, by pixel and polarity or by channel, no event lost.

The slices are cut on the sorted times, so that little is left to do for each event: tens of millions are counted a second.
"""

from itertools import pairwise
from typing import Literal

import numpy as np

from ..errors import DataError
from .formats import Events

By = Literal["time", "count"]
Pixels = int | tuple[int, int]  # a side, or (height, width)


def frames(
    events: Events, T: int, sensor: Pixels = 34, size: Pixels | None = None, by: By = "time"
) -> np.ndarray:
    """Counts int64 [T, 2, H, W], channel 0 OFF and 1 ON, whose sum is the number of events.

    `by="time"`: T equal slices of the time from the first to the last event; `by="count"`: T runs of equally many events
    in the order of time, up to one. `size` (H, W) below `sensor`: neighbouring pixels are counted together.
    Raises DataError for an event outside the sensor.
    """
    (height, width), (H, W) = pair(sensor), pair(size or sensor)
    _check(events, height, width)
    cells = _scaled(events.y, height, H)
    cells *= W
    cells += _scaled(events.x, width, W)
    cells += np.multiply(events.p, H * W, dtype=np.intp)
    return _count(events.t, cells, T, 2 * H * W, by).reshape(T, 2, H, W)


def channels(
    events: Events,
    T: int,
    sensor: int = 700,
    size: int | None = None,
    by: By = "time",
    window: int | None = None,
) -> np.ndarray:
    """Counts int64 [T, size] of events that have only a channel, x.

    As `frames`; a `window` of so many microseconds from time zero is what `by="time"` divides, and later events count in
    the last slice: slices then last equally long in all recordings.
    """
    _check(events, 1, sensor)
    size = size or sensor
    return _count(events.t, _scaled(events.x, sensor, size), T, size, by, window)


def pair(size: Pixels) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def _check(events: Events, height: int, width: int) -> None:
    if all(
        axis.max(initial=0) < end and axis.min(initial=0) >= 0
        for axis, end in _ends(events, height, width)
    ):
        return
    i = int(
        np.argmax(
            np.logical_or.reduce(
                [(axis < 0) | (axis >= end) for axis, end in _ends(events, height, width)]
            )
        )
    )
    where = f"x={events.x[i]} y={events.y[i]} p={events.p[i]}"
    raise DataError(
        f"event {i} at {where} is outside the sensor of {height} x {width} and two polarities"
    )


def _ends(events: Events, height: int, width: int) -> list[tuple[np.ndarray, int]]:
    return [(events.x, width), (events.y, height), (events.p, 2)]


def _scaled(axis: np.ndarray, old: int, new: int) -> np.ndarray:
    """A coordinate below `old` as one below `new`."""
    out = axis.astype(np.intp)
    if new != old:
        out *= new
        out //= old
    return out


def _count(
    t: np.ndarray, cells: np.ndarray, T: int, n: int, by: By, window: int | None = None
) -> np.ndarray:
    """How many events of each slice lie in each of n cells, [T, n]. `cells` is overwritten."""
    if not (t[:-1] <= t[1:]).all():
        order = np.argsort(t, kind="stable")
        t, cells = t[order], cells[order]
    for k, (first, stop) in enumerate(pairwise(_edges(t, T, by, window))):
        cells[first:stop] += k * n
    return np.bincount(cells, minlength=T * n).reshape(T, n)


def _edges(t: np.ndarray, T: int, by: By, window: int | None) -> list[int]:
    """Where the T slices of sorted times begin, and the end: event i is in slice i * T // N, or (t - start) * T // length."""
    if by == "count" or not len(t):
        return [-(-k * len(t) // T) for k in range(T + 1)]
    start, length = (0, window) if window else (int(t[0]), int(t[-1]) - int(t[0]) + 1)
    begins = [start - (-k * length // T) for k in range(1, T)]
    return [0, *np.searchsorted(t, np.array(begins, np.int64)).tolist(), len(t)]
