"""How far a long preparation of data is, on standard error: a bar on a terminal, a plain line now and then elsewhere.

Nothing is shown for what takes less than `PATIENCE` seconds.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE = 1.0
TERMINAL_SECONDS, PLAIN_SECONDS = 0.2, 10.0


class Advance(Protocol):
    """Called with how many more are done."""

    def __call__(self, n: int) -> None: ...


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Shows how many of `total` are done, as often as the function given is called."""
    terminal = sys.stderr.isatty()
    start = time.monotonic()
    shown, done = start + PATIENCE - (TERMINAL_SECONDS if terminal else PLAIN_SECONDS), 0

    def advance(n: int) -> None:
        nonlocal shown, done
        done += n
        now = time.monotonic()
        if now - shown >= (TERMINAL_SECONDS if terminal else PLAIN_SECONDS):
            shown = now
            print(*_line(what, done, total, now - start, terminal), sep="", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if time.monotonic() - start >= PATIENCE:
            print(*_line(what, done, total, time.monotonic() - start, terminal), sep="", file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int, seconds: float, terminal: bool) -> tuple[str, str, str]:
    """What goes before, the text, what goes behind."""
    left = f"{seconds * (total - done) / done:,.0f} s left" if 0 < done < total else f"{seconds:,.0f} s"
    text = f"{what}: {done:,} of {total:,}, {left}"
    if not terminal:
        return "", text, "\n"
    filled = 24 * done // max(total, 1)
    return "\r", f"{'█' * filled}{'░' * (24 - filled)} {100 * done // max(total, 1):3d} %  {text}", "\x1b[K"
