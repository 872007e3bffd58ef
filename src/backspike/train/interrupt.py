"""Ctrl-C and SIGTERM: finish the step, save, then stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class StopRequest:
    yes: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """A flag that Ctrl-C or SIGTERM sets, so that a step ends before the run does; a second one ends it at once.

    Not under torchrun. It passes on what every rank has had from the terminal already, signals all when one ends, whose last
    words would then be cut, and after 30 s kills who is still there.
    """
    asked, once = StopRequest(), "TORCHELASTIC_RUN_ID" in os.environ
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    after: dict[signal.Signals, Any] = {
        s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)
    }

    def ask(number: int, frame: Any) -> None:
        asked.yes = True
        signal.signal(number, signal.SIG_IGN if once else after[signal.Signals(number)])

    for s in after:
        signal.signal(s, ask)
    try:
        yield asked
    except BaseException:
        if once:
            after = dict.fromkeys(after, signal.SIG_IGN)
        raise
    finally:
        for s, handler in after.items():
            signal.signal(s, handler)
