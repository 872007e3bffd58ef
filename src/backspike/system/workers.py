"""Worker processes: Python interpreters that call functions for this process (pickles in a pipe).

Unlike workers of `multiprocessing`, they do not run the user's script again. Unlike workers of
`concurrent.futures`, they report events, can crash without affecting each other, and end with this
process however it ends. This file imports only the standard library because `bench` runs `serve`
in environments without backspike.
"""

from __future__ import annotations

import os
import pickle
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
    """A worker ended without an answer. The message says why; `code` is its exit code."""

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class Worker:
    """One process. It ignores Ctrl-C and ends when its pipe closes: by `end` or with this process.

    python: the command that starts the interpreter. start: the code that it runs, which calls
    `serve`. env: its environment (default: `environment()`). quiet: hide its standard error and use
    the last line as the reason if it fails.
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
        """Sends (function, *args) and returns function(*args), or what `serve` answers instead.

        Raises what the function raises, or WorkerFailed if the process ends or needs more than
        `timeout` seconds (0: no limit).
        """
        self.send(*message, timeout=timeout)
        return self.receive()[1]

    def send(self, *message: Any, timeout: int = 0) -> None:
        """Sends a message without waiting for the answer."""
        self._timeout = timeout
        with suppress(OSError):  # the process has ended; `receive` raises
            self.pipe.send((timeout, message))

    def receive(self) -> tuple[Literal["event", "result"], Any]:
        """Waits for the next event or the result. Raises like `call`."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            raise self._failed() from None
        if kind == "error":
            raise value
        return kind, value

    def end(self, patience: float = 0) -> None:
        """Closes the pipe, which ends the process; kills it after `patience` seconds."""
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
            return WorkerFailed(f"no answer within {self._timeout} s", code)
        if code < 0:
            memory = " (probably out of memory)" if code == -9 else ""
            return WorkerFailed(f"ended by signal {-code}{memory}", code)
        lines: list[bytes] = []
        if self._stderr:
            self._stderr.seek(0)
            lines = self._stderr.read().strip().splitlines()
        reason = lines[-1][:300].decode(errors="replace") if lines else ""
        return WorkerFailed(reason or f"ended with exit code {code}", code)


def run(
    function: Callable[..., Any],
    jobs: Iterable[T],
    n: int,
    *,
    places: Sequence[tuple[Any, ...]] = ((),),
    patience: float = 0,
    **options: Any,
) -> Iterator[tuple[T, Literal["event", "result", "failed"], Any]]:
    """Calls function(*job, *place) for every job in n workers; `options` are those of `Worker`.

    The workers have these places in turn; one that replaces another has its place.

    Yields (job, kind, value) for events, results and WorkerFailed as they arrive. A worker that
    failed is replaced. Raises what the function raises. However this ends, all workers are stopped
    within `patience` seconds.
    """
    waiting, workers = deque(jobs), list[Worker]()
    busy: dict[Any, tuple[Worker, int, T]] = {}

    def start_next(worker: Worker | None, number: int) -> None:
        if not waiting:
            return
        if worker is None:
            workers.append(worker := Worker(**options))
        busy[worker.pipe] = worker, number, (job := waiting.popleft())
        worker.send(function, *job, *places[number % len(places)])

    try:
        for number in range(min(n, len(waiting))):
            start_next(None, number)
        while busy:
            for pipe in wait(list(busy)):
                worker, number, job = busy[pipe]
                kind: Literal["event", "result", "failed"]
                try:
                    kind, value = worker.receive()
                except WorkerFailed as e:
                    kind, value = "failed", e
                if kind != "event":
                    del busy[pipe]
                    start_next(None if kind == "failed" else worker, number)
                yield job, kind, value
    finally:
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.end(patience)


def pack(arguments: Mapping[str, Any], problem: str) -> bytes:
    """Arguments of the user's for a worker, which calls `unpack`.

    Raises ValueError "NAME= `problem`: reason" for one that cannot be sent.
    The pipe itself would send tensors as shared memory, which only `multiprocessing` can open.
    """
    packed = {}
    for name, value in arguments.items():
        try:
            packed[name] = pickle.dumps(value)
        except Exception as e:  # anybody's class may raise anything
            raise ValueError(
                f"{name}= {problem}: it cannot be sent to another process ({e})"
            ) from e
        if b"__main__" in packed[name]:
            raise ValueError(
                f"{name}= {problem}: it is defined in the script or notebook itself, which another "
                "process does not run; move it into a file of its own and import it"
            )
    return pickle.dumps(packed)


def environment(**more: str) -> dict[str, str]:
    """This process's environment and import path, with `more` variables set."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, **more}


@contextmanager
def _without_interrupt() -> Iterator[None]:
    """Blocks SIGINT: child processes inherit the mask; this process gets the signal afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the worker -------------------------------------------------------------------------------

_to_parent: Connection


def serve(answer: Callable[..., Any] = lambda function, *args: function(*args)) -> None:
    """Runs in the worker: answers messages until the pipe is closed."""
    global _to_parent
    _to_parent = Connection(int(sys.argv[1]))
    os.dup2(2, 1)  # redirect whatever libraries print to standard error
    with suppress(EOFError, OSError):
        while True:
            timeout, message = _to_parent.recv()
            # SIGALRM ends the process even if C code loops or the parent is gone
            signal.alarm(timeout)
            try:
                reply = "result", answer(*message)
            except (Exception, KeyboardInterrupt) as e:
                reply = "error", ExceptionWithTraceback(e, e.__traceback__)
            signal.alarm(0)
            _to_parent.send(reply)


def unpack(packed: bytes) -> dict[str, Any]:
    """Runs in the worker: the arguments that the parent has packed."""
    return {name: pickle.loads(value) for name, value in pickle.loads(packed).items()}


def emit(event: Any) -> None:
    """Runs in the worker: sends an event to the parent process."""
    with suppress(OSError):
        _to_parent.send(("event", event))


def stop_wanted() -> bool:
    """Runs in the worker: whether the parent has closed the pipe or ended."""
    return _to_parent.poll()
