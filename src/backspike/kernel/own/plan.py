"""How a call of a neuron with equations of its own is computed, and what backends take and give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import Unsupported
from .. import ops
from ..call import Call, Record
from ..coefficients import over_channels
from ..equations import Equations
from .backward import Backward, Options, differentiated, rows
from .c import Layer
from .record import Rest, record_timestep


class Plan(NamedTuple):
    """How a call is computed."""

    layer: Layer
    options: Options
    back: Backward | None  # None: nothing requires a gradient
    recomputes: bool  # the backward pass computes the forward pass again
    flags: list[int]  # of `ops.encode`
    numbers: list[float]
    record: Record
    functions: Any  # what the backend compiled

    @property
    def saves(self) -> list[bool]:
        """Which of the rows the forward pass saves."""
        none = [False] * len(rows(self.layer.trace))
        return none if self.back is None or self.recomputes else self.back.saved

    @property
    def saves_x(self) -> bool:
        """Whether the forward pass saves its input."""
        return self.back is not None and (self.recomputes or self.back.needs_x)

    @property
    def saves_v0(self) -> bool:
        """Whether it saves the first states."""
        return self.back is not None and (self.recomputes or bool(self.back.before))


class Outputs(NamedTuple):
    """The results of a forward pass."""

    spikes: Tensor
    membrane: Tensor | None
    state: Tensor  # [states, B, ...], or empty if it is not recorded
    kept: Tensor | None  # the saved rows, [saved, T N]


class Saved(NamedTuple):
    """What a backward pass begins with, besides the gradients of the results."""

    x: Tensor | None
    v0: Tensor | None
    kept: Tensor | None
    table: Tensor
    seed: Tensor | None
    p: Tensor | None
    shape: torch.Size  # of x
    strides: Sequence[int]  # of a timestep
    dtype: torch.dtype  # of x
    at_rest: bool  # whether the call began at rest
    needs_x: bool
    needs_v0: bool


class Gradients(NamedTuple):
    """The results of a backward pass."""

    gx: Tensor | None
    g_v0: Tensor | None  # [states, B, ...]
    sums: Tensor  # of the learned coefficients, [learned, C] or [learned, 1], in float64


class Prepared(NamedTuple):
    """A call with its plan."""

    plan: Plan
    call: Call  # flattened, if a coefficient differs between the neurons of a channel
    coefficients: list[float | Tensor]  # tensors are 0-dim or `[C]`


def plan_call(
    equations: Equations, call: Call, rest: Rest, functions: Callable[..., Any]
) -> Prepared:
    """The call, which begins at call.v0 or at rest, with its plan.

    rest: for each state its value at rest, a number or the name of a constant. functions: compiles
    a layer with its options and its backward pass, if any. Raises Unsupported with the reason if
    the equations cannot be recorded or compiled.
    """
    recording = record_timestep(equations, call, rest)
    coefficients = [_per_channel(a, call.x) for a in recording.coefficients]
    if any(isinstance(a, Tensor) and a.dim() > 1 for a in coefficients):
        coefficients = [_flat(a, call.x) for a in coefficients]
        v0 = None if call.v0 is None else call.v0.flatten(2)
        call = replace(call, x=call.x.flatten(2), v0=v0)
    learned = tuple(
        i for i, a in enumerate(coefficients) if isinstance(a, Tensor) and a.requires_grad
    )
    needs = learned or any(a is not None and a.requires_grad for a in (call.x, call.v0))
    varies = tuple(isinstance(a, Tensor) and a.dim() > 0 for a in coefficients)
    dtype = torch.float32 if call.x.dtype == torch.float16 else call.x.dtype
    layer = Layer(recording.trace, varies, recording.rest, dtype)
    options = _options(call, learned, recording.width)
    back = None
    if needs and torch.is_grad_enabled():
        back = _differentiated(recording.trace, options)
    recomputes = call.neuron.saves == "recompute"
    plan = Plan(
        layer,
        options,
        back,
        recomputes,
        *ops.encode(call),
        call.record,
        functions(layer, options, back),
    )
    return Prepared(plan, call, coefficients)


_differentiated = lru_cache(maxsize=256)(differentiated)


def _options(call: Call, learned: tuple[int, ...], width: int) -> Options:
    neuron, masked = call.neuron, call.seed is not None
    return Options(
        learned,
        width,
        attached=neuron.reset_gradient != 0,
        direct=call.record.membrane or call.record.moments,
        base=neuron.base.code,  # type: ignore[attr-defined]
        replacement=neuron.replace.code if masked and neuron.replace else 0,  # type: ignore[attr-defined]
        masked=masked,
    )


def _per_channel(a: float | Tensor, x: Tensor) -> float | Tensor:
    """A coefficient that broadcasts against x[t]: 0-dim, `[C]`, or of the shape x.shape[2:]."""
    if not isinstance(a, Tensor) or not a.dim():
        return a
    sample = x.shape[2:]
    shape = a.shape[1:] if a.dim() == len(sample) + 1 and a.shape[0] == 1 else a.shape
    shape = torch.Size([*[1] * (len(sample) - len(shape)), *shape])
    if len(shape) > len(sample) or any(n not in (1, m) for n, m in zip(shape, sample)):
        raise Unsupported(f"a tensor of the shape {list(a.shape)} differs between samples")
    if a.numel() == 1:
        return a.reshape(())
    return a.reshape(shape).expand(sample) if math.prod(shape[1:]) > 1 else a.reshape(-1)


def _flat(a: float | Tensor, x: Tensor) -> float | Tensor:
    if not isinstance(a, Tensor) or not a.dim():
        return a
    return over_channels(a, x).expand(x.shape[2:]).reshape(-1)


def describe(plan: Plan, states: Sequence[str]) -> str:
    """What the forward pass saves, in words. states: their names."""
    trace = plan.layer.trace
    names = {trace.u: "the spike variable"} | dict(zip(trace.middle, states))
    found = [names[row] for row, saved in zip(rows(trace), plan.saves) if saved]
    return ", ".join([*found, *["its input"] * plan.saves_x]) or "nothing"
