"""Files that survive a crash: atomic writes, and bounded reads of JSON and arrays."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import math
import os
import re
import stat
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..errors import RunError, option
from . import disk

DEEPEST_JSON = 32  # levels of nesting; our own files have fewer than ten
LARGEST_ARRAYS = 1 << 29  # bytes of an unpacked evaluation.npz


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file atomically; if that fails, the old file stays intact. Raises RunError."""
    temporary = disk.temporary(path)
    try:
        disk.sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
        # never write into an existing file: it may be a hard link to one that matters
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        disk.replace(temporary, path)
        disk.sync(path.parent)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with suppress(OSError):  # it was renamed, or the folder is not writable
            temporary.unlink()


def cannot_write(path: Path, e: OSError) -> RunError:
    """The error for a file that could not be written, with what to do."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"no space left to write {path}; free some space and repeat the command "
            f"(for a run: backspike resume {path.parent})"
        )
    return RunError(
        f"cannot write {path}: {e.strerror or e}; "
        f"make the folder writable or choose another one ({option('out')})"
    )


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises OSError for pipes and devices, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def read_json(text: bytes | str) -> Any:
    """Parses untrusted JSON. As in other readers, integers beyond 64 bits become floats.

    Raises ValueError for invalid JSON and for more than `DEEPEST_JSON` levels of nesting.
    """
    try:
        value = json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits)
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [
            x
            for part in level
            if isinstance(part, dict | list)
            for x in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an untrusted .npz file: no pickles, and no allocation beyond what the file contains.

    Raises ValueError for a damaged file or more than `LARGEST_ARRAYS` bytes, and OSError.
    """
    return parse_arrays(read_regular(path), LARGEST_ARRAYS)


def parse_arrays(data: bytes, largest: int) -> dict[str, np.ndarray]:
    """`read_arrays` of the content of a file that unpacks to at most `largest` bytes."""
    out = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > largest:
                raise ValueError(f"unpacks to {size} bytes, more than {largest}")
            for member in members:
                # reads at most member.file_size bytes, which the check above bounds
                out[member.filename.removesuffix(".npy")] = read_npy(
                    member.filename, io.BytesIO(archive.read(member))
                )
    except Exception as e:  # a damaged archive or header may raise nearly anything
        raise ValueError(f"{type(e).__name__}: {e}") from e
    return out


def read_npy(name: str, data: io.BytesIO) -> np.ndarray:
    """The array in a `.npy` file, never more than the file holds, and no Python objects.

    name: for messages. Raises ValueError, or nearly any other error for a damaged header.
    """
    version = npy.read_magic(data)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(data)
    rest = data.getbuffer()[data.tell() :]
    n = math.prod(shape)
    fits = n * dtype.itemsize == len(rest) and min(shape, default=0) >= 0
    if dtype.hasobject or not dtype.itemsize or not fits:
        raise ValueError(f"{name}: {dtype} {shape} in {len(rest)} bytes")
    array = np.frombuffer(bytearray(rest), dtype) if n else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C")


SEAL = re.compile(rb"<!-- backspike, sha256 of the above: ([0-9a-f]{64}) -->\n")


def seal(text: bytes) -> bytes:
    """Markdown with a last line by which `is_sealed` knows that nobody has edited it."""
    return text + b"<!-- backspike, sha256 of the above: %s -->\n" % _sha256(text)


def is_sealed(text: bytes) -> bool:
    """Whether this is the unchanged result of `seal`."""
    above, newline, last = text[:-1].rpartition(b"\n")
    found = SEAL.fullmatch(last + b"\n")
    return found is not None and found[1] == _sha256(above + newline)


def is_edited(path: Path) -> bool:
    """Whether this file is a result of `seal` that has been changed since."""
    text = read_regular(path) if path.is_file() else b""
    return SEAL.search(text) is not None and not is_sealed(text)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def to_json(value: Any) -> bytes:
    """A JSON file's content, after `plain`."""
    return json.dumps(plain(value), indent=1, allow_nan=False).encode() + b"\n"


def plain(value: Any) -> Any:
    """Converts a value for JSON: arrays to lists, paths to text, nan and infinity to None."""
    match value:
        case dict():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case np.ndarray() | np.generic():
            return plain(value.tolist())
        case Path():
            return str(value)
        case float() if not math.isfinite(value):
            return None
    return value
