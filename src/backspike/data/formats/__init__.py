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
