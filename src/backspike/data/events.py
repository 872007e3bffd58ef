"""Event recordings as frames: a set is counted once, and cached as one memory-mapped array.

Counts are unsigned bytes, or the narrowest unsigned integers that hold them all. The cache entry is keyed by the list of the
samples, the sizes and times of their files, and all that says how events are counted.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from . import packed
from .binning import Binning, binned
from .cache import cached
from .formats import Events
from .frames import By, Pixels, channels, frames, pair
from .progress import progress
from .recordings import Reader, Sample, Samples
from .source import Parts, Place, Source
from .split import Split

DEFAULT_T = 10


@dataclass(frozen=True)
class Recordings:
    """Reads an event set: counts [N, T, 2, H, W], or [N, T, channels] where events have no pixel.

    `samples(source, folder)`: which there are; `events(path, samples, **options)`: of those in one
    file. `window`: only of sets with channels, the microseconds that the T slices divide; about as
    long as the longest recordings.
    """

    samples: Callable[[Source, Path], Samples]
    events: Reader
    window: int | None = None

    def __call__(
        self,
        source: Source,
        place: Place,
        T: int | None,
        size: Pixels | None,
        by: By,
        **options: Any,
    ) -> Parts:
        """Raises DataError for damaged recordings, and for options that do not fit."""
        shape, count = self._counting(source, DEFAULT_T if T is None else T, size, by)
        found = self._found(source, place.folder)
        flat = [sample for part in found for sample in part]
        # "True" where there are no options: entries of earlier versions are found
        chosen = " ".join(map(str, options.values())) or "True"
        key = hashlib.sha256(f"{_content(place.folder, flat)} {shape} {by} {chosen} 2".encode())
        binning = Binning(source.name, flat, count, functools.partial(self.events, **options))
        x = cached(
            f"{source.name}-frames-{key.hexdigest()[:16]}.npy",
            read=functools.partial(packed.read, shape=(len(flat), *shape)),
            write=functools.partial(_write, shape=(len(flat), *shape), binning=binning),
        )
        first, second = len(found[0]), len(found[0]) + len(found[1])
        labels, ids = (
            np.array([getattr(sample, field) for sample in flat], np.int64)
            for field in ("label", "id")
        )
        train, validation, test = (
            Split(x[part], labels[part], ids[part])
            for part in (slice(first), slice(first, second), slice(second, None))
        )
        return train, validation, test

    def _found(self, source: Source, folder: Path) -> Samples:
        found = self.samples(source, folder)
        if not found[0] or not found[2]:
            raise DataError(
                f"{folder}: {len(found[0])} recordings to train and {len(found[2])} to test: "
                "both are needed"
            )
        return found

    def _counting(
        self, source: Source, T: int, size: Pixels | None, by: By
    ) -> tuple[tuple[int, ...], Callable[[Events], np.ndarray]]:
        """The shape of one sample, and what makes it from events."""
        *_, height, width = source.shape
        if T < 1 or by not in ("time", "count"):
            raise DataError(f"T={T}, by={by!r}: T from 1, by 'time' or 'count'")
        if self.window is not None:
            n = width if size is None else size
            if not isinstance(n, int) or not 1 <= n <= width:
                raise DataError(f"size={size}: {source.name} has channels: size from 1 to {width}")
            return (T, n), functools.partial(
                channels, T=T, sensor=width, size=n, by=by, window=self.window
            )
        H, W = pair(size) if size is not None else (height, width)
        if not (1 <= H <= height and 1 <= W <= width):
            raise DataError(
                f"size={size}: the sensor of {source.name} has {height} x {width} pixels: "
                f"size from 1 to {min(height, width)}"
            )
        return (T, 2, H, W), functools.partial(
            frames, T=T, sensor=(height, width), size=(H, W), by=by
        )


def _content(folder: Path, samples: list[Sample]) -> str:
    """Stands for the samples in the cache's key: names in order, sizes, times of change."""
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
