"""NumPy's `.npy` files."""

import io

import numpy as np

from ...errors import DataError
from ...system.files import read_npy
from . import one_line


def decode(data: bytes, name: str = "<bytes>") -> np.ndarray:
    """The array of one file. No file can run code: arrays of Python objects are refused.

    Raises DataError for a damaged header, and for a length other than it announces.
    """
    try:
        return read_npy("the header", io.BytesIO(data))
    except Exception as error:  # a damaged header may raise nearly anything
        raise DataError.at(name, 0, f"truncated or damaged array ({one_line(error)})") from error
