"""Stops a training on Ctrl-C or SIGTERM, after the current step and a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import on_command_line


@dataclass
class StopRequest:
    """Whether the training should stop after the current step."""

    requested: bool = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """The first Ctrl-C or SIGTERM sets a flag, so that the step can finish; a second stops at once.

    Further Ctrl-C are then ignored, on the command line until the process ends. Under torchrun, a
    second signal is ignored: torchrun passes on signals that every rank has already received from
    the terminal. It also signals all ranks when one ends, which would cut off their last messages,
    and kills those left after 30 s.
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
        second = handlers[signal.Signals(number)]
        if second is signal.default_int_handler:
            second = stop_now
        signal.signal(number, signal.SIG_IGN if torchrun else second)

    def stop_now(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a third one must not interrupt the clean-up
        raise KeyboardInterrupt

    for s in handlers:
        signal.signal(s, request)
    try:
        yield stop
    except BaseException as e:
        if torchrun or (isinstance(e, KeyboardInterrupt) and on_command_line()):
            handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
