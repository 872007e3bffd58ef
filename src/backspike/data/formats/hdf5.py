"""Spikes of numbered channels, and recordings of event cameras, in HDF5 files.

Of channels, `spikes/times` and `spikes/units` hold one variable-length array per sample, with
seconds and channel numbers; `labels` holds the classes. Cramer, Stradmann, Schemmel, Zenke 2020,
doi:10.1109/TNNLS.2020.3044364. h5py (the extra `events`) reads them by path and sample by sample,
because files can have gigabytes. A file that refers to others, or claims more than it contains, is
refused. HDF5 is a large C library in which damage can cause endless loops and crashes: it runs in a
worker that has SECONDS for each answer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...system.machine import ONE_THREAD
from ...system.workers import Worker, WorkerFailed, environment
from . import Events, columns, one_line
from .idx import DEFLATE_RATIO

SECONDS = 60


def labels(path: Path, num_classes: int) -> np.ndarray:
    """The classes of all samples, int64 [N].

    Raises DataError for a file that is damaged or contains no spikes.
    """
    with _reader(path) as ask:
        return ask(_labels, num_classes)


def _labels(path: Path, num_classes: int) -> np.ndarray:
    times, units, y = (_member(path, key) for key in ("spikes/times", "spikes/units", "labels"))
    if len({len(times), len(units), len(y)}) != 1:
        raise DataError(
            f"{path}: {len(times)} times, {len(units)} units and {len(y)} labels: "
            "the numbers must be equal"
        )
    out = _read(path, y, slice(None))
    if (
        out.dtype.kind not in "iu"
        or out.ndim != 1
        or (len(out) and not 0 <= out.min() <= out.max() < num_classes)
    ):
        raise DataError(
            f"{path}: labels of type {out.dtype} {out.shape}: "
            f"expected whole numbers below {num_classes}"
        )
    return out.astype(np.int64)


def decode(path: Path, samples: Sequence[int], channels: int = 1 << 16) -> Iterator[Events]:
    """The events of the samples with these numbers: x is the channel, y and p are 0, t is in us.

    Raises DataError for a damaged file, and for spikes outside `channels` or before time zero.
    """
    with _reader(path) as ask:
        for i in samples:
            yield ask(_events, int(i), channels)


def _events(path: Path, i: int, channels: int) -> Events:
    times, units = (
        np.asarray(_read(path, _member(path, key), i)) for key in ("spikes/times", "spikes/units")
    )
    if (
        times.ndim != 1
        or times.shape != units.shape
        or times.dtype.kind != "f"
        or units.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{path}: sample {i} has times {times.dtype} {times.shape} "
            f"and units {units.dtype} {units.shape}"
        )
    seconds = times.astype(np.float64)
    if (
        not ((seconds >= 0) & (seconds < 1e6)).all()
        or not ((units >= 0) & (units < channels)).all()
    ):
        raise DataError(
            f"{path}: sample {i} has spikes before time 0 or outside channels 0 to {channels - 1}"
        )
    zero = np.zeros(len(units), np.uint16)
    t = np.rint(seconds * 1e6).astype(np.int64)
    return Events(units.astype(np.uint16), zero, t, zero.astype(np.uint8))


# of an event camera: where its columns are, or an array with fields
GROUPS = ("", "events", "CD/events")


def decode_columns(path: Path) -> Events:
    """The events of an event camera: the data sets x, y, t, p, at the top or in `events`.

    `events` and `CD/events` may also be one data set with these fields; see `columns.py` for other
    names, units and polarity. Raises DataError.
    """
    with _reader(path) as ask:
        return ask(_columns)


def _columns(path: Path) -> Events:
    file = _opened(path)
    try:
        found = {group: file.get(group) if group else file for group in GROUPS}
        fields = {
            group: members.dtype.names or () if hasattr(members, "dtype") else list(members)
            for group, members in found.items()
            if members is not None
        }
    except Exception as error:
        raise DataError(f"{path}: damaged HDF5 file ({one_line(error)})") from error
    known = {alias for aliases in columns.ALIASES.values() for alias in aliases}
    for group, names in fields.items():
        if "x" not in names:
            continue
        if hasattr(found[group], "dtype"):
            return columns.from_array(_read(path, _member(path, group), slice(None)), str(path))
        prefix = f"{group}/" if group else ""
        arrays = {
            name: _read(path, _member(path, prefix + name), slice(None))
            for name in names
            if name in known
        }
        return columns.from_columns(arrays, str(path))
    raise DataError(
        f"{path}: no events: expected data sets x, y, t, p, at the top or in a group `events`"
    )


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError(
            f"{path}: reading HDF5 files needs h5py: pip install 'backspike[events]' "
            f"({one_line(error)})"
        ) from error
    return h5py


@lru_cache
def _opened(path: Path) -> Any:
    try:
        return _h5py(path).File(path, "r")
    except DataError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, ValueError, ... for damage
        raise DataError(f"{path}: truncated or damaged HDF5 file ({one_line(error)})") from error


@lru_cache
def _member(path: Path, key: str) -> Any:
    """The HDF5 data set `key`, if it is in this file and no larger than its stored bytes allow."""
    import h5py

    file = _opened(path)
    try:
        out = file[key]
        own = all(
            isinstance(file.get(part, getlink=True), h5py.HardLink)
            for part in {key, key.split("/")[0]}
        )
        if not own or out.file != file or out.external or out.is_virtual:
            raise ValueError("it is in another file")
        chunk = math.prod(out.chunks or ()) * out.dtype.itemsize
        if len(out) and max(out.nbytes, chunk) > DEFLATE_RATIO * out.id.get_storage_size():
            raise ValueError(f"{out.shape} of {out.dtype} in {out.id.get_storage_size()} bytes")
        return out
    except Exception as error:
        raise DataError(
            f"{path}: no data set {key!r}: damaged, or not a file of spikes ({one_line(error)})"
        ) from error


def _read(path: Path, member: Any, what: Any) -> Any:
    try:
        return member[what]
    except Exception as error:
        raise DataError(
            f"{path}: {member.name} {what} cannot be read: damaged HDF5 file ({one_line(error)})"
        ) from error


@contextmanager
def _reader(path: Path) -> Iterator[Callable[..., Any]]:
    """Yields a function that calls functions of this module on `path`, in a worker.

    The worker keeps the file open until the block ends.
    """
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file")
    _h5py(path)
    kept = _kept.get()
    worker = kept.pop() if kept else Worker(env=environment(**ONE_THREAD), quiet=True)

    def ask(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return worker.call(function, path, *args, timeout=SECONDS)
        except WorkerFailed as error:
            raise DataError(
                f"{path}: damaged HDF5 file (the process that reads it {error})"
            ) from None

    try:
        yield ask
        ask(_close)
    except BaseException:
        worker.end()
        raise
    if kept is None:
        worker.end()
    else:
        kept.append(worker)


def _close(path: Path) -> None:
    _opened.cache_clear()
    _member.cache_clear()


# workers that wait for the next file, within `one_worker`
_kept: ContextVar[list[Worker] | None] = ContextVar("_kept", default=None)


@contextmanager
def one_worker() -> Iterator[None]:
    """One worker reads all files in this block, instead of one worker each: starting takes long."""
    workers: list[Worker] = []
    token = _kept.set(workers)
    try:
        yield
    finally:
        _kept.reset(token)
        for worker in workers:
            worker.end()
