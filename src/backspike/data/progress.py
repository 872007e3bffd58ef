"""The progress of long data preparation, on standard error.

A terminal shows a bar; elsewhere a plain line is printed from time to time. Nothing is shown for
work that takes less than `PATIENCE` seconds.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE = 1.0
TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 10.0


class Advance(Protocol):
    """Called with the number of items finished since the last call."""

    def __call__(self, n: int) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Shows how many of `total` items are done. Call the yielded function to advance."""
    terminal = sys.stderr.isatty()
    pause = TERMINAL_SECONDS if terminal else PLAIN_SECONDS
    start = time.monotonic()
    done, shown, shown_done = 0, start + PATIENCE - pause, 0

    def show(now: float) -> None:
        nonlocal shown, shown_done
        shown, shown_done = now, done
        sys.stderr.write(
            _bar(what, done, total, now - start)
            if terminal
            else _text(what, done, total, now - start) + "\n"
        )
        sys.stderr.flush()

    def advance(n: int) -> None:
        nonlocal done
        done += n
        now = time.monotonic()
        if now - shown >= pause:
            show(now)

    try:
        yield advance
    finally:
        if shown_done:
            if shown_done < done:
                show(time.monotonic())
            if terminal:
                sys.stderr.write("\n")


def _text(what: str, done: int, total: int, seconds: float) -> str:
    left = f"{seconds * (total - done) / done:,.0f} s left" if done < total else f"{seconds:,.0f} s"
    return f"{what}: {done:,} of {total:,}, {left}"


def _bar(what: str, done: int, total: int, seconds: float) -> str:
    """A bar with its text, which overwrites the previous one."""
    filled = 24 * done // total
    bar = "█" * filled + "░" * (24 - filled)
    return f"\r{bar} {100 * done // total:3d} %  {_text(what, done, total, seconds)}\x1b[K"
