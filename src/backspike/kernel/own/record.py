"""The timestep of a neuron as a recording, with the tensors that it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import Unsupported
from ..call import Call
from ..coefficients import over_channels, state_dtype
from ..equations import THRESHOLD, Equations, context, values_in_use
from .backward import uses_only_arguments
from .trace import Trace, Tracer, trace

Rest = Sequence[float | str]  # the states at rest: numbers, or names of constants


class Recording(NamedTuple):
    """A timestep, and what it takes besides rows."""

    trace: Trace
    coefficients: list[float | Tensor]  # the threshold first
    rest: tuple[int, ...]  # the coefficients of the states at rest
    width: int  # that of the width, or -1


# by the class and the first recording: whether a second one equalled it
_steady: dict[tuple[type, Trace], bool] = {}


def record_timestep(equations: Equations, call: Call, rest: Rest) -> Recording:
    """The timestep of the equations.

    Raises Unsupported if it cannot be recorded, or if a second recording differs from the first.
    """
    recording = _record(equations, call, rest)
    key = equations.kind, recording.trace
    if key not in _steady:
        with torch.no_grad():
            again = _record(equations, call, rest)
        same = map(_same, recording.coefficients, again.coefficients)
        if len(_steady) > 1000:  # recordings that differ in a number that is not a constant
            _steady.clear()
        _steady[key] = recording.trace == again.trace and all(same)
    if not _steady[key]:
        raise Unsupported("its methods do not compute the same each time")
    return recording


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    return torch.equal(torch.as_tensor(a).detach(), torch.as_tensor(b).detach())


def _record(equations: Equations, call: Call, rest: Rest) -> Recording:
    tracer, width = Tracer(state_dtype(call.x)), -1
    values = values_in_use(equations.constants, call.x)
    tracer.nodes("coefficient", tracer.coefficient(values[THRESHOLD]))
    places = tuple(tracer.coefficient(values[p] if isinstance(p, str) else p) for p in rest)
    if call.width is not None:
        width = tracer.coefficient(over_channels(call.width, call.x).to(tracer.dtype))
    try:
        with context(equations, call, values):
            methods = equations.step, equations.reset, equations.adapt
            recorded = trace(*methods, states=len(rest), tracer=tracer)
    except Unsupported:
        raise
    except Exception as error:  # whatever the methods do with proxies
        line = str(error).partition("\n")[0]
        raise Unsupported(f"its methods cannot be traced ({line})") from error
    if not uses_only_arguments(recorded):
        raise Unsupported("reset or adapt uses more than its arguments")
    return Recording(recorded, tracer.coefficients, places, width)
