"""Bins recordings into frames, in as many processes as there are processors."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..system import workers
from ..system.machine import ONE_THREAD, processors
from .formats import Events, hdf5
from .packed import narrowest
from .samples import Reader, Sample

CHUNK_BYTES = 1 << 23
CHUNK_ROWS = 16
# starting processes takes longer than binning files of this total size
SERIAL_BYTES = 1 << 25


@dataclass(frozen=True)
class Binning:
    """A job: `read` the samples of a data set and `count` each one into a row.

    alone: work in this process, because `read` is the user's and other processes cannot import it.
    """

    name: str
    samples: Sequence[Sample]
    count: Callable[[Events], np.ndarray]
    read: Reader
    alone: bool = False

    def rows(self) -> np.ndarray:
        """The rows of all samples. Raises DataError with the name of a damaged or missing file."""
        out: list[np.ndarray] = []
        with hdf5.one_worker():
            for path, group in groupby(self.samples, key=lambda sample: sample.path):
                out += self._of_file(path, list(group))
        return np.stack(out)

    def _of_file(self, path: Path, samples: Sequence[Sample]) -> list[np.ndarray]:
        try:
            return [narrowest(self.count(events)) for events in self.read(path, samples)]
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except DataError as error:
            raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error


def bin_rows(binning: Binning, row_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields all rows in any order, as (index of the first, unsigned integers [n, ...]).

    row_bytes: the approximate size of one row.
    """
    limit = max(CHUNK_ROWS, CHUNK_BYTES // row_bytes)
    chunks = [
        (first, replace(binning, samples=binning.samples[first:stop]))
        for first, stop in _chunks(binning.samples, limit)
    ]
    paths = {sample.path for sample in binning.samples}
    n = 1 if binning.alone else min(processors(), len(chunks))
    if n < 2 or not sys.executable or sum(path.stat().st_size for path in paths) < SERIAL_BYTES:
        for first, chunk in chunks:
            yield first, chunk.rows()
        return
    env = workers.environment(**ONE_THREAD)
    for (first, _), kind, value in workers.run(_rows, chunks, n, env=env):
        if kind == "failed":
            raise DataError(
                "a process that prepares recordings ended early (killed, perhaps because memory "
                "ran out): run it again"
            ) from value
        yield first, value


def _rows(first: int, chunk: Binning) -> np.ndarray:
    return chunk.rows()


def _chunks(samples: Sequence[Sample], limit: int) -> Iterator[tuple[int, int]]:
    """Yields (first, stop) of runs of at most `limit` samples.

    Samples of the same file stay together, unless there are more of them than `limit`.
    """
    first = stop = 0
    for _, group in groupby(samples, key=lambda sample: sample.path):
        n = sum(1 for _ in group)
        if stop > first and stop + n - first > limit:
            yield first, stop
            first = stop
        stop += n
        while stop - first > limit:
            yield first, first + limit
            first += limit
    if stop > first:
        yield first, stop
