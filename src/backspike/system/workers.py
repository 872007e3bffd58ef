"""Worker processes: Python interpreters that call functions for this one, over a pipe of pickles.

Unlike those of `multiprocessing` they do not run the user's script again. Unlike those of
`concurrent.futures` they report events, may die without ending the others, and end when this
process does, however it ends. This file imports only the standard library, because `bench` runs
`serve` in environments without backspike.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])
_START = "from backspike.system.workers import serve; serve()"


class WorkerFailed(Exception):
    """A worker ended without an answer; the text says why. code: its exit code."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class Worker:
    """One process. It ignores Ctrl-C and ends with its pipe: by `end`, or when this process is gone.

    python: the command of the interpreter. start: the code that it runs, which calls `serve`.
    env: by default `environment()`. quiet: what it writes to standard error is not shown, but the
    last line explains why it ended.
    """

    _timeout = 0

    def __init__(
        self,
        *,
        python: Sequence[str] = (sys.executable,),
        start: str = _START,
        env: Mapping[str, str] | None = None,
        quiet: bool = False,
    ) -> None:
        self.pipe, theirs = Pipe()
        self._stderr = tempfile.TemporaryFile() if quiet else None  # noqa: SIM115  (closed by end)
        with theirs, _without_interrupt():
            self.process = subprocess.Popen(
                [*python, "-c", start, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stderr=self._stderr,
                env=environment() if env is None else env,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def call(self, *message: Any, timeout: int = 0) -> Any:
        """The answer to a message, by default function(*args) for (function, *args).

        Raises what the function raises, and WorkerFailed, also where it takes more than `timeout`
        seconds (0: no limit).
        """
        self.send(*message, timeout=timeout)
        return self.receive()[1]

    def send(self, *message: Any, timeout: int = 0) -> None:
        self._timeout = timeout
        with suppress(OSError):  # the process is gone; `receive` raises
            self.pipe.send((timeout, message))

    def receive(self) -> tuple[Literal["event", "result"], Any]:
        """The next event, or the result of what was sent."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            raise self._failed() from None
        if kind == "error":
            raise value
        return kind, value

    def end(self, patience: float = 0) -> None:
        """Closes the pipe, so that the process ends, and kills it after `patience` seconds."""
        self.pipe.close()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._stderr:
            self._stderr.close()

    def _failed(self) -> WorkerFailed:
        code = self.process.wait()
        if code == -signal.SIGALRM:
            return WorkerFailed(f"gave no answer within {self._timeout} s", code)
        if code < 0:
            memory = ", which an exhausted memory sends" if code == -9 else ""
            return WorkerFailed(f"ended by signal {-code}{memory}", code)
        lines: list[bytes] = []
        if self._stderr:
            self._stderr.seek(0)
            lines = self._stderr.read().strip().splitlines()
        said = lines[-1][:300].decode(errors="replace") if lines else ""
        return WorkerFailed(said or f"ended with exit code {code}", code)


def run(
    function: Callable[..., Any], jobs: Iterable[T], n: int, *, patience: float = 0, **options: Any
) -> Iterator[tuple[T, Literal["event", "result", "failed"], Any]]:
    """Calls function(*job) for every job, in n workers with these `options`.

    Yields (job, kind, value) of events, results and WorkerFailed, in the order in which they come;
    a worker that failed is replaced. Raises what the function raises. In the end, however it comes,
    all workers are ended, within `patience` seconds.
    """
    waiting, workers = deque(jobs), list[Worker]()
    busy: dict[Any, tuple[Worker, T]] = {}

    def give(worker: Worker | None) -> None:
        if not waiting:
            return
        if worker is None:
            workers.append(worker := Worker(**options))
        busy[worker.pipe] = worker, waiting.popleft()
        worker.send(function, *busy[worker.pipe][1])

    try:
        for _ in range(min(n, len(waiting))):
            give(None)
        while busy:
            for pipe in wait(list(busy)):
                worker, job = busy[pipe]
                kind: Literal["event", "result", "failed"]
                try:
                    kind, value = worker.receive()
                except WorkerFailed as e:
                    kind, value = "failed", e
                if kind != "event":
                    del busy[pipe]
                    give(None if kind == "failed" else worker)
                yield job, kind, value
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.end(patience)


def environment(**more: str) -> dict[str, str]:
    """The environment of a worker that imports what this process can import."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, **more}


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Blocks SIGINT: a process that starts here inherits it, this process gets the signal later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker -------------------------------------------------------------------------------

_to_parent: Connection


def serve(answer: Callable[..., Any] = lambda function, *args: function(*args)) -> None:
    """The loop of a worker: answers messages until the pipe is closed."""
    global _to_parent
    _to_parent = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    with suppress(EOFError, OSError):
        while True:
            timeout, message = _to_parent.recv()
            # the default action of SIGALRM ends even C code that loops, also without a parent
            signal.alarm(timeout)
            try:
                reply = "result", answer(*message)
            except (Exception, KeyboardInterrupt) as e:
                reply = "error", ExceptionWithTraceback(e, e.__traceback__)
            signal.alarm(0)
            _to_parent.send(reply)


def emit(event: Any) -> None:
    """Sends an event to the process that started this one."""
    with suppress(OSError):
        _to_parent.send(("event", event))


def stop_wanted() -> bool:
    """Whether the process that started this one has closed the pipe or is gone."""
    return _to_parent.poll()
