"""An array on disk, memory-mapped, of the narrowest unsigned integers that hold it, and checked block by block.

The file is a `.npy` file with a table behind it: the CRC-32 of every block of the data, then that of the header and the table.
A flipped bit anywhere is found when the file is opened.
"""

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError

BLOCK_BYTES = 1 << 22


def write(path: Path, shape: tuple[int, ...], rows: Iterable[tuple[int, np.ndarray]]) -> None:
    """The file of an array whose rows come in any order, as (number of the first, unsigned integers [n, ...])."""
    out = _made(path, np.dtype(np.uint8), shape)
    for first, part in rows:
        if part.dtype.itemsize > out.dtype.itemsize:
            out = _widened(path, out, part.dtype)
        out[first : first + len(part)] = part
    out.flush()
    table = _sums(path, out)
    with path.open("ab") as stream:
        stream.write(table)


def narrowest(x: np.ndarray) -> np.ndarray:
    """The same counts as the narrowest unsigned integers that hold them."""
    return x.astype(np.min_scalar_type(int(x.max(initial=0))))


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The array, mapped copy on write: changing it changes no file. Raises DataError for any damage, naming the byte."""
    try:
        x = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # a damaged header may raise nearly anything
        raise DataError(f"no .npy file: {error}") from error
    if x.shape != shape or x.dtype.kind != "u":
        raise DataError(f"{x.dtype} {x.shape} is not {shape}")
    end, table = x.offset + x.nbytes, _sums(path, x)
    with path.open("rb") as stream:
        stream.seek(end)
        held = stream.read(len(table) + 1)
    if held != table:
        block = (
            next(
                (i for i in range(0, len(table), 4) if held[i : i + 4] != table[i : i + 4]),
                len(table),
            )
            // 4
        )
        raise DataError(
            f"byte {min(x.offset + block * BLOCK_BYTES, end)}: a block of the frames differs from its sum"
        )
    return x


def _made(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """The mapped array, all of its file's room taken: a full disk is an OSError here, and no signal at some later row."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate") and out.nbytes:
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, out.offset + out.nbytes)
    return out


def _widened(path: Path, narrow: np.memmap, dtype: np.dtype) -> np.memmap:
    other = path.with_suffix(".wide.tmp")
    try:
        out = _made(other, dtype, narrow.shape)
        out[:] = narrow
        os.replace(other, path)
    finally:
        other.unlink(missing_ok=True)
    return out


def _sums(path: Path, x: np.memmap) -> bytes:
    """The table that belongs behind the array. Blocks are summed in threads: zlib releases the interpreter."""
    data = x.reshape(-1).view(np.uint8).data
    blocks = [data[first : first + BLOCK_BYTES] for first in range(0, len(data), BLOCK_BYTES)]
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(zlib.crc32, blocks))
    table = np.array(sums, "<u4").tobytes()
    with path.open("rb") as stream:
        return table + zlib.crc32(stream.read(x.offset) + table).to_bytes(4, "little")
