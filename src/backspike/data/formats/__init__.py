"""Readers of the official file formats: pure functions from bytes to arrays.

Every reader takes the bytes of one file and a name for messages, and returns NumPy arrays or
`Events`. A file that is damaged, truncated or claims more than it contains raises a `DataError`
with the file and the byte offset. Sizes that a file claims are checked against its length before
memory is allocated.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...system.files import read_regular


def read_file(path: Path) -> bytes:
    """The content of a regular file. Pipes and devices, which could block for ever, are refused.

    Raises DataError if the file cannot be read.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def one_line(error: Exception) -> str:
    """Another library's error as one line, for the message of a DataError."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True, eq=False)
class Events:
    """A recording of an event camera: N events in the order of the file.

    x, y: column and row, uint16 [N]. t: microseconds, int64 [N]. p: polarity, uint8 [N], 0 for OFF
    and 1 for ON.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.t)


def fitting(events: Events, what: str, side: int, end: int) -> list[np.ndarray]:
    """x, y, t, p as int64. Raises DataError for the first event that format `what` cannot hold."""
    x, y, t, p = (
        np.asarray(field).astype(np.int64) for field in (events.x, events.y, events.t, events.p)
    )
    fits = (x >= 0) & (x < side) & (y >= 0) & (y < side) & (p >= 0) & (p < 2) & (t >= 0) & (t < end)
    if not fits.all():
        i = int(np.argmin(fits))
        raise DataError(f"event {i} does not fit {what}: x={x[i]} y={y[i]} t={t[i]} p={p[i]}")
    return [x, y, t, p]
