"""The one seam between the neuron and what computes it: a `Rule`, a `Call`, and a backend that runs the whole sequence.

A backend is a module with `refuses(call) -> reason or None` and `run(call) -> Result`. `dispatch` picks one; `auto` takes the
first that does not refuse and logs once why that is not the fastest.
"""

from ..errors import Unsupported
from .call import Call, Moments, Result, Rule
from .dispatch import backends, choose, dispatch
from .mask import draw_seed, dropped
from .saved import MEMORIES

__all__ = [
    "MEMORIES",
    "Call",
    "Moments",
    "Result",
    "Rule",
    "Unsupported",
    "backends",
    "choose",
    "dispatch",
    "draw_seed",
    "dropped",
]
