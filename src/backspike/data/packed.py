"""A memory-mapped array on disk, stored as the narrowest unsigned integers and checked by block.

The file is a `.npy` file followed by a table: the CRC-32 of each block of the data, then the CRC-32
of the header and the table. Any flipped bit is found when the file is opened.
"""

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..system import disk

BLOCK_BYTES = 1 << 22


def write(path: Path, shape: tuple[int, ...], rows: Iterable[tuple[int, np.ndarray]]) -> None:
    """Writes an array whose rows arrive in any order.

    rows: (index of the first, unsigned integers [n, ...]). Raises OSError when the disk is full.
    """
    out = _create(path, np.dtype(np.uint8), shape)
    for first, part in rows:
        if part.dtype.itemsize > out.dtype.itemsize:
            out = _widen(path, out, part.dtype)
        out[first : first + len(part)] = part
    out.flush()
    table = _checksums(path, out)
    with path.open("ab") as stream:
        stream.write(table)


def narrowest(x: np.ndarray) -> np.ndarray:
    """The same counts, as the narrowest unsigned integers that hold them."""
    return x.astype(np.min_scalar_type(int(x.max(initial=0))))


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array, memory-mapped copy-on-write: changing it changes no file.

    Raises DataError for any damage, with the byte offset.
    """
    if not path.is_file():
        raise DataError("not a regular file")
    try:
        x = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # a damaged header may raise nearly anything
        raise DataError(f"not a .npy file: {error}") from error
    if x.shape != shape or x.dtype.kind != "u":
        raise DataError(f"expected {shape}, got {x.dtype} {x.shape}")
    end = x.offset + x.nbytes
    table = _checksums(path, x)
    with path.open("rb") as stream:
        stream.seek(end)
        stored = stream.read(len(table) + 1)
    if stored != table:
        differ = (i for i in range(0, len(table), 4) if stored[i : i + 4] != table[i : i + 4])
        block = next(differ, len(table)) // 4
        at = min(x.offset + block * BLOCK_BYTES, end)
        raise DataError(f"byte {at}: the checksum of a block of frames is wrong")
    return x


def _create(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """The mapped array, with all of its disk space allocated.

    A full disk thus raises OSError here, instead of ending the process with SIGBUS later.
    """
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate") and out.nbytes:
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, out.offset + out.nbytes)
    return out


def _widen(path: Path, narrow: np.memmap, dtype: np.dtype) -> np.memmap:
    wider = path.with_suffix(".wide.tmp")
    try:
        out = _create(wider, dtype, narrow.shape)
        out[:] = narrow
        disk.replace(wider, path)
    finally:
        wider.unlink(missing_ok=True)
    return out


def _checksums(path: Path, x: np.memmap) -> bytes:
    """The table that belongs after the array. Uses threads, because zlib releases the GIL."""
    data = x.reshape(-1).view(np.uint8).data
    blocks = [data[first : first + BLOCK_BYTES] for first in range(0, len(data), BLOCK_BYTES)]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(zlib.crc32, blocks))
    table = np.array(sums, "<u4").tobytes()
    with path.open("rb") as stream:
        return table + zlib.crc32(stream.read(x.offset) + table).to_bytes(4, "little")
