"""The contents of a NIR file as dicts of numbers, text and arrays; the file may be anybody's.

NIR files are HDF5. As in `data/formats/hdf5.py`, the HDF5 library runs in a worker, because damage
can make it loop or crash. Nothing is allocated before its size has been checked.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..data.formats import one_line
from ..data.formats.idx import DEFLATE_RATIO
from ..errors import ExchangeError
from ..system.machine import ONE_THREAD
from ..system.workers import Worker, WorkerFailed, environment

SECONDS = 60
LARGEST = 1 << 32  # bytes of all arrays together, as numbers of 64 bits
# smaller files may expand to so much: 256 MB, as constants of many neurons compress well, or to
# EXPANSION times their size
SMALL, EXPANSION = 1 << 28, 100
MOST_ENTRIES = 200_000  # groups and data sets
DEEPEST = 16  # groups within groups


def read_file(path: Path, *, trusted: bool = False) -> dict[str, Any]:
    """The group `node` of a NIR file. Raises ExchangeError for a file that is damaged or no NIR.

    trusted: this process has just written it, so that no worker is needed.
    """
    if not path.is_file():
        raise ExchangeError(f"{path} is no file; name a NIR file, such as net.nir")
    try:
        import h5py  # noqa: F401  (so that its absence is reported before a worker starts)
    except Exception as error:  # a broken installation raises more than ImportError
        raise ExchangeError(
            f"NIR files are read by h5py: pip install 'backspike[nir]' ({one_line(error)})"
        ) from error
    if trusted:
        return _read(path)
    with Worker(env=environment(**ONE_THREAD), quiet=True) as worker:
        try:
            return worker.call(_read, path, timeout=SECONDS)
        except WorkerFailed as error:
            raise ExchangeError(
                f"{path}: damaged HDF5 file (the process that reads it {error})"
            ) from None


def _read(path: Path) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if "node" not in file:
                raise ExchangeError(f"{path} is no NIR file: it has no group 'node'")
            return _Reader(path.stat().st_size).group(file["node"], 0)
    except ExchangeError:
        raise
    except Exception as error:  # h5py raises nearly anything for damage
        raise ExchangeError(
            f"{path}: truncated, damaged or no NIR file ({one_line(error)})"
        ) from None


class _Reader:
    def __init__(self, file_size: int) -> None:
        self.file_size = file_size
        self.left = min(LARGEST, max(SMALL, EXPANSION * file_size))
        self.seen: set[Any] = set()

    def group(self, group: Any, depth: int) -> dict[str, Any]:
        import h5py

        out: dict[str, Any] = {}
        if depth > DEEPEST:
            raise ValueError(f"groups lie more than {DEEPEST} deep")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r} is a link to another place")
            item = group[name]
            place = h5py.h5o.get_info(item.id).addr
            if place in self.seen or len(self.seen) >= MOST_ENTRIES:
                raise ValueError(f"{name!r} is one entry of too many, or stands in two places")
            self.seen.add(place)
            is_group = isinstance(item, h5py.Group)
            out[name] = self.group(item, depth + 1) if is_group else self.values(item)
        return out

    def values(self, item: Any) -> Any:
        import h5py

        text = h5py.check_string_dtype(item.dtype) is not None
        if not text and item.dtype.kind not in "biuf":
            raise ValueError(f"{item.name!r} holds {item.dtype}, neither numbers nor text")
        if item.external or item.is_virtual:
            raise ValueError(f"{item.name!r} lies in another file")
        count = math.prod(item.shape)
        size = count * item.dtype.itemsize
        chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
        stored = min(item.id.get_storage_size(), self.file_size)
        ratio = DEFLATE_RATIO if item.id.get_create_plist().get_nfilters() else 1
        if max(size, chunk) > max(1 << 16, ratio * stored):
            raise ValueError(f"{item.name!r} claims a shape of {item.shape} in {stored} bytes")
        self.take(max(size, 8 * count))
        if not text:
            return item[()]
        words = np.empty(item.shape, dtype=object)
        for place in np.ndindex(item.shape):
            word = item[place]  # one by one, as many may be references to the same long text
            self.take(8 * len(word))
            words[place] = word.decode() if isinstance(word, bytes) else str(word)
        return words if item.shape else words[()]

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(
                f"its contents expand to too much for a file of {self.file_size} bytes"
            )
