"""`read_events` reads a recording of an event camera in any of the formats known here."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from . import (
    Events,
    aedat2,
    aedat3,
    aedat4,
    atis,
    columns,
    dat,
    evt2,
    evt3,
    hdf5,
    one_line,
    read_file,
)
from .prophesee import encoding, split_header

HDF5 = (".h5", ".hdf5", ".hdf")
TEXT = (".csv", ".txt")
SUFFIXES = (*HDF5, *TEXT, ".npy", ".npz", ".dat", ".raw", ".aedat", ".aedat4", ".bin")
# how the content begins -> its reader
_BEGINNINGS: Mapping[bytes, Callable[[bytes, str], Events]] = {
    aedat3.VERSION: aedat3.decode,
    aedat4.VERSION: aedat4.decode,
    b"\x93NUMPY": columns.decode_npy,
    b"PK\x03\x04": columns.decode_npz,
}
_PROPHESEE = {"EVT2": evt2.decode, "EVT3": evt3.decode, "": dat.decode}


def read_events(path: str | os.PathLike[str], *, upright: bool = True) -> Events:
    """The events of one file: column x, row y, microseconds t, polarity p (0 OFF, 1 ON).

    Formats: `.npy`, `.npz`, `.csv` and `.txt`, HDF5, Prophesee DAT, EVT 2.0 and EVT 3.0, AEDAT 2.0
    of a DVS128, 3.1 and 4.0, and the 40-bit events of N-MNIST (`.bin`). The content decides where
    it says what it is, else the suffix. upright: of AEDAT 2.0, see `formats/aedat2.py`.
    Raises DataError with the file and the byte offset for a damaged or unknown file.
    """
    path = Path(path)
    if path.suffix.lower() in HDF5:
        return hdf5.decode_columns(path)
    return decode(read_file(path), str(path), upright)


def decode(data: bytes, name: str = "<bytes>", upright: bool = True) -> Events:
    """`read_events` of the content of a file, of all formats but HDF5."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in TEXT:
        return columns.decode_csv(data, name)
    for beginning, read in _BEGINNINGS.items():
        if data.startswith(beginning):
            return read(data, name)
    if data.startswith(aedat2.VERSION):
        return aedat2.decode(data, name, upright)
    if data.startswith(b"% "):
        kind = encoding(split_header(data)[0])
        if kind not in _PROPHESEE:
            raise DataError.at(name, 0, f"events coded as {kind[:20]!r}: give EVT2, EVT3 or DAT")
        return _PROPHESEE[kind](data, name)
    if suffix == ".bin":
        return atis.decode(data, name)
    raise DataError.at(
        name,
        0,
        f"no recording in a known format, it begins with {data[:14]!r}; known are "
        f"{', '.join(SUFFIXES)}, and any other with a read function of yours",
    )


def read_own(read: Callable[[Path], Any], path: Path) -> Events:
    """The events that a user's own function returns for a file; see `as_events`.

    Raises DataError for what the function raises.
    """
    try:
        value = read(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: the read function failed ({one_line(error)})") from error
    return as_events(value, str(path))


def as_events(value: Any, name: str) -> Events:
    """Events of what describes them: `Events`, an array or columns, see `columns.from_array`."""
    if isinstance(value, Events):
        value = {"x": value.x, "y": value.y, "t": value.t, "p": value.p}
    if isinstance(value, np.ndarray):
        return columns.from_array(value, name)
    if isinstance(value, Mapping):
        return columns.from_columns(value, name)
    raise DataError(
        f"{name}: a {type(value).__name__} is no recording; expected bs.data.Events, a structured "
        "array with the fields x, y, t, p, an array [N, 4] of these columns or a dict of them"
    )
