"""Files that survive a crash: atomic writes, and bounded reads of JSON and arrays."""

from __future__ import annotations

import errno
import glob
import io
import json
import math
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from ..errors import RunError
from . import disk

DEEPEST_JSON = 32  # levels; what is written here has fewer than ten
LARGEST_ARRAYS = 1 << 29  # bytes of an evaluation.npz, unpacked


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file whole or not at all; what was there before stays intact when the disk is full."""
    temporary = disk.temporary(path)
    try:
        disk.sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
        # never into a file that is there: it may be another name of one that matters
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
        with suppress(OSError):  # it was renamed, or the folder cannot be written
            temporary.unlink()


def cannot_write(path: Path, e: OSError) -> RunError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"no space left to write {path}; free some and repeat the command, or for a run: backspike resume {path.parent}"
        )
    return RunError(
        f"cannot write {path}: {e.strerror or e}; make the folder writable or choose another with --out"
    )


def read_json(text: bytes | str) -> Any:
    """JSON from a file that may be anybody's: whole numbers beyond 64 bits become floats, as other readers have them.

    Raises ValueError for whatever is no JSON, or is nested more than `DEEPEST_JSON` levels deep.
    """
    try:
        value = json.loads(
            text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits)
        )
    except RecursionError:
        raise ValueError("nested too deep") from None
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
    raise ValueError("nested too deep")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which may be anybody's: no pickles, and no memory for what the file does not hold.

    Raises ValueError for damage, for more than `LARGEST_ARRAYS` bytes; OSError for a file that cannot be read.
    """
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > LARGEST_ARRAYS:
                raise ValueError(f"unpacks to {size} bytes, more than {LARGEST_ARRAYS}")
            for member in members:
                data = io.BytesIO(
                    archive.read(member)
                )  # never more than the size that was added up
                version = npy.read_magic(data)
                header = (
                    npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                )
                shape, fortran, dtype = header(data)
                rest = data.getbuffer()[data.tell() :]
                n = math.prod(shape)
                if (
                    dtype.hasobject
                    or not dtype.itemsize
                    or min(shape, default=0) < 0
                    or n * dtype.itemsize != len(rest)
                ):
                    raise ValueError(f"{member.filename}: {dtype} {shape} in {len(rest)} bytes")
                array = np.frombuffer(bytearray(rest), dtype) if n else np.zeros(0, dtype)
                out[member.filename.removesuffix(".npy")] = array.reshape(
                    shape, order="F" if fortran else "C"
                )
    except OSError:
        raise
    except Exception as e:  # a damaged archive or header may raise nearly anything
        raise ValueError(f"{type(e).__name__}: {e}") from e
    return out


def to_json(value: Any) -> bytes:
    return json.dumps(plain(value), indent=1, allow_nan=False).encode() + b"\n"


def plain(value: Any) -> Any:
    """JSON has no nan, no arrays and no paths."""
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
