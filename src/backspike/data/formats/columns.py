"""Events as columns: x, y, t and p in arrays, `.npy`, `.npz` and text files.

Conventions of all of them: x is the column and y the row, counted from 0 at the top left; t is in
whole microseconds; polarity p is 0 (OFF) and 1 (ON), or -1 and 1, or False and True. Files of
channels instead of pixels leave out y and p, which are then 0. Names: `ALIASES`. Columns without
names are x, y, t, p, in this order. Other units or orders need a `read` function.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import DataError
from ...system.files import parse_arrays
from . import Events, npy, one_line

ALIASES = {
    "x": ("x",),
    "y": ("y",),
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "p": ("p", "pol", "polarity", "on"),
}
ORDER = ("x", "y", "t", "p")
# an archive that unpacks to more than so many times its size holds no recording
UNPACKED_RATIO = 100
_LIMITS = {"x": (0, 1 << 16), "y": (0, 1 << 16), "t": (0, 1 << 62), "p": (-1, 2)}
_TYPES = {"x": np.uint16, "y": np.uint16, "t": np.int64, "p": np.int8}


def from_columns(columns: Mapping[str, Any], name: str = "<arrays>") -> Events:
    """Events of named columns. y and p may be missing.

    Raises DataError for missing columns, different lengths, and values outside the conventions.
    """
    # faery adds the size of the sensor: x@1280
    lower = {key.lower().partition("@")[0].strip(): key for key in columns}
    found = {
        axis: np.asarray(columns[lower[alias]])
        for axis, aliases in ALIASES.items()
        for alias in aliases[::-1]
        if alias in lower
    }
    for axis in ("x", "t"):
        if axis not in found:
            has = ", ".join(columns) or "none"
            raise DataError.at(name, 0, f"no column {axis}: columns are x, y, t, p; it has {has}")
    shapes = {axis: array.shape for axis, array in found.items()}
    if any(shape != found["t"].shape or len(shape) != 1 for shape in shapes.values()):
        raise DataError.at(name, 0, f"columns of the shapes {shapes}: expected equal lengths")
    whole = {axis: _whole(array, axis, name) for axis, array in found.items()}
    n = len(whole["t"])
    y, p = whole.get("y", np.zeros(n, np.uint16)), whole.get("p", np.zeros(n, np.int8))
    if p.min(initial=0) < 0 and (p == 0).any():
        raise DataError.at(name, 0, "polarities -1 and 0 together: expected 0 and 1, or -1 and 1")
    return Events(whole["x"], y, whole["t"], (p > 0).astype(np.uint8))


def from_array(array: np.ndarray, name: str = "<array>") -> Events:
    """Events of a structured array [N] with named fields, or of an array [N, 4] of x, y, t, p."""
    if array.dtype.names:
        return from_columns({field: array[field] for field in array.dtype.names}, name)
    if array.ndim != 2 or array.shape[1] != len(ORDER):
        raise DataError.at(
            name,
            0,
            f"an array {array.dtype} {list(array.shape)}: expected events, a structured array with "
            "the fields x, y, t, p or an array [N, 4] of these columns",
        )
    return from_columns(dict(zip(ORDER, array.T)), name)


def _whole(values: np.ndarray, axis: str, name: str) -> np.ndarray:
    low, end = _LIMITS[axis]
    what = "whole microseconds" if axis == "t" else "whole numbers"
    if values.dtype.kind not in "iubf":
        raise DataError.at(name, 0, f"column {axis} is of type {values.dtype}: expected {what}")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        raise DataError.at(name, 0, f"column {axis} holds fractions: expected {what}")
    if len(values) and not low <= values.min() <= values.max() < end:
        raise DataError.at(
            name,
            0,
            f"column {axis} reaches from {values.min()} to {values.max()}: "
            f"expected {what} from {low} to {end - 1}",
        )
    return values.astype(_TYPES[axis])


def decode_npy(data: bytes, name: str = "<bytes>") -> Events:
    """The events of a `.npy` file, see `from_array`. Raises DataError."""
    return from_array(npy.decode(data, name), name)


def decode_npz(data: bytes, name: str = "<bytes>") -> Events:
    """The events of a `.npz` file: an array for each column, or one as for `decode_npy`.

    Raises DataError.
    """
    try:
        arrays = parse_arrays(data, UNPACKED_RATIO * len(data))
    except ValueError as error:
        raise DataError.at(name, 0, f"truncated or damaged archive ({one_line(error)})") from error
    if len(arrays) == 1:
        return from_array(next(iter(arrays.values())), name)
    return from_columns(arrays, name)


def decode_csv(data: bytes, name: str = "<bytes>") -> Events:
    """The events of a text file with a line per event, separated by commas, semicolons or spaces.

    Lines at the start that begin with `#` or `%` are skipped. A first line with names is used;
    without one, the columns are x, y, t, p. Raises DataError with the offset of a wrong line.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError.at(name, error.start, "not ASCII text") from error
    start = _skip_comments(text)
    end = text.find("\n", start)
    first = text[start : end if end >= 0 else len(text)].strip()
    separator = next((mark for mark in ",;" if mark in first), None)
    words = [word.strip() for word in first.split(separator)]
    named = bool(words) and not _all_numbers(words)
    names, begin = (words, len(text) if end < 0 else end + 1) if named else (list(ORDER), start)
    if len(set(names)) < len(names) or (words and len(words) != len(names)):
        raise DataError.at(
            name, start, f"{first[:60]!r}: expected the columns x, y, t, p, or a line with names"
        )
    table = _numbers(text, begin, separator, len(names), name)
    return from_columns(dict(zip(names, table.T)), name)


def _all_numbers(words: list[str]) -> bool:
    try:
        return all(float(word) is not None for word in words)
    except ValueError:
        return False


def _skip_comments(text: str) -> int:
    at = 0
    while text[at : at + 1] in ("#", "%"):
        end = text.find("\n", at)
        at = len(text) if end < 0 else end + 1
    return at


def _numbers(text: str, begin: int, separator: str | None, columns: int, name: str) -> np.ndarray:
    """float64 [N, columns], which is exact for whole numbers up to 2^53."""
    if not text[begin:].strip():
        return np.zeros((0, columns))
    try:
        table = np.loadtxt(
            io.StringIO(text[begin:]), delimiter=separator, comments=None, ndmin=2, dtype=np.float64
        )
        if table.shape[1] == columns:
            return table
        reason = f"{table.shape[1]} values instead of {columns}"
    except Exception as error:  # loadtxt raises ValueError, OverflowError, ... with a row's number
        reason = one_line(error)
    at = _wrong_line(text, begin, separator, columns)
    raise DataError.at(name, at, f"a line that is not {columns} numbers ({reason})")


def _wrong_line(text: str, begin: int, separator: str | None, columns: int) -> int:
    """The offset of the first line that is not so many numbers; `begin` if there is none."""
    at = begin
    for line in text[begin:].splitlines(keepends=True):
        words = line.split(separator)
        if line.strip() and not (_all_numbers(words) and len(words) == columns):
            return at
        at += len(line)
    return begin
