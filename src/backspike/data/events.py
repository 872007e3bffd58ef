"""Event recordings as frames: every recording of a set counted once, and cached as one memory-mapped array.

Counts are unsigned bytes, or the narrowest unsigned integers that hold them all. The cache entry is keyed by the list of the
samples, the sizes and times of their files, and all that says how events are counted.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from . import packed
from .binning import Binning, binned
from .cache import cached
from .formats import Events
from .frames import By, Pixels, channels, frames, pair
from .progress import progress
from .recordings import Sample, parts
from .sources import Source
from .split import Split

DEFAULT_T = 10
WINDOW_US = {"shd": 1_400_000, "ssc": 1_000_000}  # what the longest recordings take


def load(
    source: Source,
    folder: Path,
    T: int | None = None,
    size: Pixels | None = None,
    by: By = "time",
    upright: bool = True,
) -> tuple[Split, Split, Split]:
    """Train, validation and test of the recordings in `folder`: counts [N, T, 2, H, W], for SHD and SSC [N, T, channels].

    Raises DataError for damaged recordings, and for options that do not fit.
    """
    T = DEFAULT_T if T is None else T
    shape, count = _counting(source, T, size, by)
    found = parts(source, folder)
    flat = [sample for part in found for sample in part]
    key = hashlib.sha256(f"{_content(folder, flat)} {shape} {by} {upright} 2".encode()).hexdigest()[
        :16
    ]
    binning = Binning(source.name, flat, count, upright)
    x = cached(
        f"{source.name}-frames-{key}.npy",
        read=functools.partial(packed.read, shape=(len(flat), *shape)),
        write=functools.partial(_write, shape=(len(flat), *shape), binning=binning),
    )
    first, second = len(found[0]), len(found[0]) + len(found[1])
    labels, ids = (
        np.array([getattr(sample, field) for sample in flat], np.int64) for field in ("label", "id")
    )
    train, validation, test = (
        Split(x[part], labels[part], ids[part])
        for part in (slice(first), slice(first, second), slice(second, None))
    )
    return train, validation, test


def _counting(
    source: Source, T: int, size: Pixels | None, by: By
) -> tuple[tuple[int, ...], Callable[[Events], np.ndarray]]:
    """The shape of one sample, and what makes it from events."""
    *_, height, width = source.shape
    if T < 1 or by not in ("time", "count"):
        raise DataError(f"T={T}, by={by!r}: T from 1, by 'time' or 'count'")
    if source.name in WINDOW_US:
        n = width if size is None else size
        if not isinstance(n, int) or not 1 <= n <= width:
            raise DataError(f"size={size}: {source.name} has channels: size from 1 to {width}")
        window = WINDOW_US[source.name]
        return (T, n), functools.partial(channels, T=T, sensor=width, size=n, by=by, window=window)
    H, W = pair(size) if size is not None else (height, width)
    if not (1 <= H <= height and 1 <= W <= width):
        raise DataError(
            f"size={size}: the sensor of {source.name} has {height} x {width} pixels: size from 1 to {min(height, width)}"
        )
    return (T, 2, H, W), functools.partial(frames, T=T, sensor=(height, width), size=(H, W), by=by)


def _content(folder: Path, samples: list[Sample]) -> str:
    """What stands for the content of the samples in the cache's key: names in order, sizes, times of change."""
    digest = hashlib.sha256()
    path = None
    for sample in samples:
        if sample.path != path:
            path, stat = sample.path, sample.path.stat()
            digest.update(
                f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode()
            )
        digest.update(f"{sample.label} {sample.id} {sample.span}\n".encode())
    return digest.hexdigest()


def _write(path: Path, shape: tuple[int, ...], binning: Binning) -> None:
    packed.write(
        path,
        shape,
        _watched(
            binned(binning, int(np.prod(shape[1:]))), f"counting events of {binning.name}", shape[0]
        ),
    )


def _watched(
    rows: Iterable[tuple[int, np.ndarray]], what: str, total: int
) -> Iterator[tuple[int, np.ndarray]]:
    with progress(what, total) as advance:
        for first, part in rows:
            yield first, part
            advance(len(part))
