"""Readers of the official file formats: pure functions from bytes to arrays.

Every reader takes the bytes of one file and the name to use in messages, and returns NumPy arrays or `Events`.
A file that is damaged, truncated or claims more than it holds is refused with a `DataError` that names the file and the
byte offset; nothing is allocated from a claim that was not checked against the size of the file.
"""

from dataclasses import dataclass

import numpy as np


def one_line(error: Exception) -> str:
    """What another library says of damage, fit for the message of a DataError."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass(frozen=True, eq=False)
class Events:
    """A recording of an event camera: N events in the order of the file.

    `x`, `y`: column and row, uint16 [N]; `t`: microseconds, int64 [N]; `p`: polarity, uint8 [N], 0 for OFF and 1 for ON.
    """

    x: np.ndarray
    y: np.ndarray
    t: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.t)
