"""Event recordings as frames: binned once, then cached as one memory-mapped array.

Counts are stored as the narrowest unsigned integers that hold them all. The key of a cache entry
covers the list of samples, the sizes and modification times of their files, and all options of the
binning.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from . import packed
from .binning import Binning, bin_rows
from .cache import cached
from .formats import Events
from .frames import By, Pixels, channels, frames, pair
from .progress import progress
from .samples import Reader, Sample, Samples
from .source import Parts, Place, Source
from .split import Split

DEFAULT_T = 10


@dataclass(frozen=True)
class Recordings:
    """Reads an event set: counts [N, T, 2, H, W], or [N, T, channels] if events have no pixel.

    samples: `samples(source, folder)` lists the samples; events: `events(path, samples, **options)`
    reads those in one file. version: of a user's own sensor and reader, whose change causes new
    frames. alone: the reader is the user's and runs in this process alone.
    """

    samples: Callable[[Source, Path], Samples]
    events: Reader
    version: str = ""
    alone: bool = False

    def __call__(
        self,
        source: Source,
        place: Place,
        T: int | None,
        size: Pixels | None,
        by: By,
        **options: Any,
    ) -> Parts:
        """The three parts. Raises DataError for damaged recordings and for invalid options."""
        shape, count = counting(source, T, size, by)
        found = self._list(source, place.folder)
        flat = [sample for part in found for sample in part]
        # "True" if there are no options, so that entries of earlier versions are found
        chosen = " ".join(map(str, options.values())) or "True"
        key = cache_key(place.folder, flat, f"{shape} {by} {chosen} 2{self.version}")
        read = functools.partial(self.events, **options)
        binning = Binning(source.name, flat, count, read, alone=self.alone)
        x = cached(
            f"{source.name}-frames-{key}.npy",
            read=functools.partial(packed.read, shape=(len(flat), *shape)),
            write=functools.partial(write_rows, shape=(len(flat), *shape), binning=binning),
        )
        first = len(found[0])
        second = first + len(found[1])
        labels, ids = (
            np.array([getattr(sample, field) for sample in flat], np.int64)
            for field in ("label", "id")
        )
        train, validation, test = (
            Split(x[part], labels[part], ids[part])
            for part in (slice(first), slice(first, second), slice(second, None))
        )
        return train, validation, test

    def _list(self, source: Source, folder: Path) -> Samples:
        found = self.samples(source, folder)
        if not found[0] or not found[2]:
            raise DataError(
                f"{folder}: {len(found[0])} recordings for training and {len(found[2])} for "
                "testing: both are needed"
            )
        return found


def counting(
    source: Source, T: int | None, size: Pixels | None, by: By
) -> tuple[tuple[int, ...], Callable[[Events], np.ndarray]]:
    """The shape of one sample of an event set, and the function that computes it from events.

    Raises DataError for invalid options.
    """
    T = DEFAULT_T if T is None else T
    _, rows, width = source.shape
    if T < 1 or by not in ("time", "count"):
        raise DataError(f"T={T}, by={by!r}: T must be at least 1, by 'time' or 'count'")
    if source.has_channels:
        n = width if size is None else size
        if not isinstance(n, int) or not 1 <= n <= width:
            raise DataError(f"size={size}: {source.name} has channels: size must be 1 to {width}")
        return (T, n), functools.partial(
            channels, T=T, sensor=width, size=n, by=by, window=source.window
        )
    H, W = pair(size) if size is not None else (rows, width)
    if not (1 <= H <= rows and 1 <= W <= width):
        raise DataError(
            f"size={size}: the sensor of {source.name} has {rows} x {width} pixels: "
            f"size must be 1 to {min(rows, width)}"
        )
    return (T, 2, H, W), functools.partial(
        frames, T=T, sensor=(rows, width), size=(H, W), by=by, window=source.window
    )


def cache_key(folder: Path, samples: list[Sample], options: str) -> str:
    """A digest of the samples and of all that decides what is computed from them."""
    text = f"{_fingerprint(folder, samples)} {options}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(folder: Path, samples: list[Sample]) -> str:
    """A digest of the samples: names in order, file sizes, modification times."""
    digest = hashlib.sha256()
    path = None
    for sample in samples:
        if sample.path != path:
            path = sample.path
            stat = path.stat()
            digest.update(
                f"{os.path.relpath(path, folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode()
            )
        digest.update(f"{sample.label} {sample.id} {sample.span}\n".encode())
    return digest.hexdigest()


def write_rows(path: Path, shape: tuple[int, ...], binning: Binning) -> None:
    """Writes a cache entry with a row for each sample of `binning`."""
    rows = bin_rows(binning, int(np.prod(shape[1:])))
    what = f"binning events of {binning.name}"
    packed.write(path, shape, _with_progress(rows, what, shape[0]))


def _with_progress(
    rows: Iterable[tuple[int, np.ndarray]], what: str, total: int
) -> Iterator[tuple[int, np.ndarray]]:
    with progress(what, total) as advance:
        for first, part in rows:
            yield first, part
            advance(len(part))
