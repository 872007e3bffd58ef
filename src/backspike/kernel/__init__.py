"""The one seam between a neuron and what computes it: a `Call` and a backend that runs it whole.

A backend is a module with `refuses(call) -> reason or None` and `run(call) -> Result`. `dispatch` picks one; `auto` takes the
first that does not refuse and logs once why that is not the fastest.
"""

from ..errors import Unsupported
from .call import Call, Constants, Moments, Record, Result
from .dispatch import backends, choose, dispatch
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
]
