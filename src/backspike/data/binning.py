"""Recordings become rows of frames, in as many processes as there are processors.

The processes are plain interpreters that take numbers of samples on standard input and give rows on standard output: unlike
those of `multiprocessing` they run no code of the user's script a second time, and end by themselves when this process is gone.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import BinaryIO

import numpy as np

from ..errors import DataError
from ..system.machine import processors
from .formats import Events
from .packed import narrowest
from .recordings import Reader, Sample

CHUNK_BYTES, CHUNK_ROWS = 1 << 23, 16
SERIAL_BYTES = 1 << 25  # starting processes takes longer than binning files of this size


@dataclass(frozen=True)
class Binning:
    """What to do: `read` the samples of a data set, `count` each into a row. It can be pickled."""

    name: str
    samples: Sequence[Sample]
    count: Callable[[Events], np.ndarray]
    read: Reader

    def rows(self, first: int, stop: int) -> np.ndarray:
        """The rows of samples first to stop - 1. Raises DataError naming the file that is damaged or missing."""
        out = []
        for path, group in groupby(self.samples[first:stop], key=lambda sample: sample.path):
            try:
                out += [narrowest(self.count(events)) for events in self.read(path, list(group))]
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            except DataError as error:
                raise error if str(path) in str(error) else DataError(f"{path}: {error}") from error
        return np.stack(out)


def binned(binning: Binning, row_bytes: int) -> Iterator[tuple[int, np.ndarray]]:
    """All rows, as (number of the first, unsigned integers [n, ...]), in order; `row_bytes` is about what one takes."""
    limit = max(CHUNK_ROWS, CHUNK_BYTES // row_bytes)
    chunks = list(_chunks(binning.samples, limit))
    paths = {sample.path for sample in binning.samples}
    workers = min(processors(), len(chunks))
    if (
        workers < 2
        or not sys.executable
        or sum(path.stat().st_size for path in paths) < SERIAL_BYTES
    ):
        for first, stop in chunks:
            yield first, binning.rows(first, stop)
    else:
        yield from _in_processes(binning, chunks, workers)


def _chunks(samples: Sequence[Sample], limit: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of runs of about `limit` samples; the samples of one file are together, unless they are more."""
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


def _in_processes(
    binning: Binning, chunks: list[tuple[int, int]], n: int
) -> Iterator[tuple[int, np.ndarray]]:
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers: list[_Worker] = []

    def rows(first: int, stop: int) -> np.ndarray:
        worker = idle.get()
        try:
            return worker.rows(first, stop)
        finally:
            idle.put(worker)

    try:
        for _ in range(n):
            workers.append(_Worker(binning))
            idle.put(workers[-1])
        with ThreadPoolExecutor(n) as pool:
            try:
                ahead: deque[tuple[int, Future[np.ndarray]]] = deque()
                for first, stop in chunks:
                    ahead.append((first, pool.submit(rows, first, stop)))
                    if len(ahead) > 2 * n:  # no more: finished rows wait in memory
                        yield ahead[0][0], ahead.popleft()[1].result()
                for first, future in ahead:
                    yield first, future.result()
            except BaseException:  # not waiting for rows that nobody will take
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.process.kill()
                raise
    finally:
        for worker in workers:
            worker.end()


@dataclass
class _Worker:
    """One process. Messages to and from it are pickles, one behind the other."""

    binning: Binning
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        code = "from backspike.data.binning import work; work()"
        places = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **places},
        )
        self._send(self.binning)

    def rows(self, first: int, stop: int) -> np.ndarray:
        self._send((first, stop))
        assert self.process.stdout is not None
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _gone() from error
        if isinstance(answer, str):
            raise DataError(answer)
        return answer

    def _send(self, message: object) -> None:
        assert self.process.stdin is not None
        try:
            pickle.dump(message, self.process.stdin, pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
        except OSError as error:
            raise _gone() from error

    def end(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):  # what was not sent to it
                stream and stream.close()
        self.process.wait()


def _gone() -> DataError:
    return DataError(
        "a process that prepares recordings ended early (killed, perhaps for want of memory): run it again"
    )


def work() -> None:
    """The life of a process: a binning comes, then numbers of samples; out go rows, or the text of an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    try:
        binning: Binning = pickle.load(inbox)
        while True:
            first, stop = pickle.load(inbox)
            _answer(outbox, binning, first, stop)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the parent is gone, there is nobody to flush to


def _answer(outbox: BinaryIO, binning: Binning, first: int, stop: int) -> None:
    try:
        answer: np.ndarray | str = binning.rows(first, stop)
    except DataError as error:
        answer = str(error)
    pickle.dump(answer, outbox, pickle.HIGHEST_PROTOCOL)
    outbox.flush()
