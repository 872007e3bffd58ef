"""The interface between neurons and backends: a `Call`, and a backend that runs all of it.

A backend is a module with `refuses(call) -> reason or None` and `run(call) -> Result`. `dispatch`
selects one; "auto" takes the first that does not refuse and, if that is not the fastest one, logs
the reason once.
"""

from ..errors import Unsupported
from .call import Call, Constants, Moments, Record, Result
from .dispatch import backends, choose, dispatch
from .layout import firing_rate
from .mask import draw_seed, dropped
from .saved import MEMORIES

__all__ = [
    "MEMORIES",
    "Call",
    "Constants",
    "Moments",
    "Record",
    "Result",
    "Unsupported",
    "backends",
    "choose",
    "dispatch",
    "draw_seed",
    "dropped",
    "firing_rate",
]
