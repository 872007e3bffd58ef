"""Frames: events counted in T time bins, by pixel and polarity or by channel. No event is lost.

Bins are cut on the sorted times, which leaves little work per event: tens of millions of events
are counted per second.
"""

from itertools import pairwise
from typing import Literal

import numpy as np

from ..errors import DataError
from .formats import Events

By = Literal["time", "count"]
# a side, or (height, width)
Pixels = int | tuple[int, int]


def frames(
    events: Events,
    T: int,
    sensor: Pixels = 34,
    size: Pixels | None = None,
    by: By = "time",
    window: int | None = None,
) -> np.ndarray:
    """Counts int64 [T, 2, H, W], channel 0 OFF and 1 ON; they sum to the number of events.

    by: "time" for T bins of equal duration between the first and the last event, "count" for T bins
    of equally many consecutive events (up to one). size: (H, W) below `sensor` adds up
    neighbouring pixels. window: instead of the time between first and last event, `by="time"`
    divides so many microseconds from time zero. Raises DataError for an event outside the sensor.
    """
    (height, width), (H, W) = pair(sensor), pair(size or sensor)
    _check(events, height, width)
    cells = _rescale(events.y, height, H)
    cells *= W
    cells += _rescale(events.x, width, W)
    cells += np.multiply(events.p, H * W, dtype=np.intp)
    return _count(events.t, cells, T, 2 * H * W, by, window).reshape(T, 2, H, W)


def channels(
    events: Events,
    T: int,
    sensor: int = 700,
    size: int | None = None,
    by: By = "time",
    window: int | None = None,
) -> np.ndarray:
    """Counts int64 [T, size] of events that have only a channel, x; otherwise like `frames`.

    window: the duration in microseconds, from time zero, that `by="time"` divides; later events
    count in the last bin. Bins then have the same duration in all recordings.
    Raises DataError for an event whose channel is not below `sensor`.
    """
    _check(events, 1, sensor)
    size = size or sensor
    return _count(events.t, _rescale(events.x, sensor, size), T, size, by, window)


def pair(size: Pixels) -> tuple[int, int]:
    """`size` as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def _check(events: Events, height: int, width: int) -> None:
    limits = ((events.x, width), (events.y, height), (events.p, 2))
    if all(axis.max(initial=0) < end and axis.min(initial=0) >= 0 for axis, end in limits):
        return
    outside = np.logical_or.reduce([(axis < 0) | (axis >= end) for axis, end in limits])
    i = int(np.argmax(outside))
    where = f"x={events.x[i]} y={events.y[i]} p={events.p[i]}"
    raise DataError(
        f"event {i} at {where} is outside the sensor of {height} x {width} pixels and two "
        "polarities"
    )


def _rescale(axis: np.ndarray, old: int, new: int) -> np.ndarray:
    """Maps coordinates in [0, old) to [0, new)."""
    out = axis.astype(np.intp)
    if new != old:
        out *= new
        out //= old
    return out


def _count(
    t: np.ndarray, cells: np.ndarray, T: int, n: int, by: By, window: int | None = None
) -> np.ndarray:
    """Counts the events of each time bin in each of n cells, [T, n]. Overwrites `cells`."""
    if not (t[:-1] <= t[1:]).all():
        order = np.argsort(t, kind="stable")
        t, cells = t[order], cells[order]
    for k, (first, stop) in enumerate(pairwise(_edges(t, T, by, window))):
        cells[first:stop] += k * n
    return np.bincount(cells, minlength=T * n).reshape(T, n)


def _edges(t: np.ndarray, T: int, by: By, window: int | None) -> list[int]:
    """The index at which each of T bins of the sorted times begins, and the end.

    Event i is in bin i * T // N by count, and in bin (t - start) * T // length by time.
    """
    if by == "count" or not len(t):
        return [-(-k * len(t) // T) for k in range(T + 1)]
    start, length = (0, window) if window else (int(t[0]), int(t[-1]) - int(t[0]) + 1)
    begins = [start - (-k * length // T) for k in range(1, T)]
    return [0, *np.searchsorted(t, np.array(begins, np.int64)).tolist(), len(t)]
