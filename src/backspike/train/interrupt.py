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
    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Ctrl-C or SIGTERM sets a flag, so that the step can be finished; a second one stops at once.

    Under torchrun, a second signal is ignored. torchrun passes on a signal that every rank has
    already received from the terminal; it signals all ranks when one ends, which would cut off
    their last messages, and kills those left after 30 s.
    """
    stop, torchrun = StopRequest(), "TORCHELASTIC_RUN_ID" in os.environ
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers: dict[signal.Signals, Any] = {
        s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)
    }

    def request(number: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(number, signal.SIG_IGN if torchrun else handlers[signal.Signals(number)])

    for s in handlers:
        signal.signal(s, request)
    try:
        yield stop
    except BaseException:
        if torchrun:
            handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
