"""Running a neuron with equations of its own in C: one fused pass over all T in each direction."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import Unsupported
from .. import layout, ops
from ..autograd import Context, refuse_double_backward
from ..call import Call, Record, Result
from ..coefficients import over_channels, state_dtype
from ..cpu import library
from ..equations import Equations, result
from .backward import Backward, Options, differentiated, rows
from .build import function
from .c import BLOCK, Layer, backward_text, forward_text
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
    advance: Callable[[Any], object]
    retreat: Callable[[Any], object] | None

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


class Prepared(NamedTuple):
    """A call with its plan."""

    plan: Plan
    call: Call  # flattened, if a coefficient differs between the neurons of a channel
    coefficients: list[float | Tensor]  # tensors are 0-dim or `[C]`


def prepare(equations: Equations, call: Call, rest: Rest) -> Prepared:
    """The call, which begins at call.v0 or at rest, with the C functions for it compiled.

    rest: for each state its value at rest, a number or the name of a constant. Raises Unsupported
    with the reason if it cannot be compiled.
    """
    _check(call)
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
    advance, back, retreat = function(forward_text(layer), "forward"), None, None
    if needs and torch.is_grad_enabled():
        back = _differentiated(recording.trace, options)
        retreat = function(backward_text(layer, options), "backward")
    recomputes = call.neuron.saves == "recompute"
    plan = Plan(layer, options, back, recomputes, *ops.encode(call), call.record, advance, retreat)
    return Prepared(plan, call, coefficients)


_differentiated = lru_cache(maxsize=256)(differentiated)


def _check(call: Call) -> None:
    """Raise Unsupported for what no compiled neuron can do."""
    if call.x.device.type != "cpu":
        raise Unsupported(f"compiled ones run on the CPU, but the input is on {call.x.device}")
    if torch.compiler.is_compiling():
        raise Unsupported("torch.compile compiles them")
    if (name := ops.without_formula(call.neuron, ops.KINDS.values())) is not None:
        raise Unsupported(f"there is no formula in C for {name}")


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


# ------------------------------------------------------------------------------------------ the run


def run(prepared: Prepared, shape: torch.Size) -> tuple[Result, Tensor]:
    """The outputs of the call, for an x of this shape, and the last states `[states, B, ...]`."""
    plan, call, coefficients = prepared
    table = ops.constants_table(
        [a.item() if isinstance(a, Tensor) and not a.dim() else a for a in coefficients],
        state_dtype(call.x),
        call.x.device,
    )
    if plan.back is None:
        spikes, membrane, state, _ = _forward(plan, call.x, call.v0, table, call.seed is not None)
    else:
        learned = [coefficients[i] for i in plan.options.learned]
        spikes, membrane, state = _Compiled.apply(
            plan, table, call.seed, call.p, call.x, call.v0, *learned
        )
    if call.x.shape != shape:
        spikes = spikes.view(shape)
        membrane = None if membrane is None else membrane.view(shape)
        state = state.view(-1, *shape[1:]) if state.numel() else state
    return result(spikes, membrane, call), state


class _Outputs(NamedTuple):
    spikes: Tensor
    membrane: Tensor | None
    state: Tensor  # [states, B, ...], or empty if it is not recorded
    kept: Tensor | None  # the saved rows, [saved, T N]


def _forward(plan: Plan, x: Tensor, v0: Tensor | None, table: Tensor, masked: bool) -> _Outputs:
    record, dtype, saves = plan.record, state_dtype(x), plan.saves
    if x.dtype == torch.float16:
        out = _forward(plan, x.float(), v0, table, masked)
        return out._replace(spikes=out.spikes.half())
    strides = layout.walk_strides(x[0], masked)
    x, v0 = layout.with_strides(x, strides), layout.state_with_strides(v0, strides)
    spikes = layout.empty(x.shape, strides, x.dtype, x.device)
    membrane, kept, state = None, None, x.new_empty(0, dtype=dtype)
    if record.membrane or record.moments:
        membrane = layout.empty(x.shape, strides, dtype, x.device)
    if record.state:
        state = layout.empty((len(plan.layer.rest), *x.shape[1:]), strides, dtype, x.device)
    if any(saves):
        kept = x.new_empty((sum(saves), x.numel()), dtype=dtype)
    job = library.make_job(x.shape, table, strides, plan.flags, plan.numbers, x.element_size())
    job.x_stride, job.keeps = x.stride(0), _bits(saves)
    library.set_pointers(job, x=x, v0=v0, s=spikes, u=membrane, kept=kept)
    library.set_pointers(job, v=state if record.state else None)
    if job.N:
        plan.advance(ctypes.byref(job))
    return _Outputs(spikes, membrane, state, kept)


def _bits(flags: Sequence[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        plan: Plan,
        table: Tensor,
        seed: Tensor | None,
        p: Tensor | None,
        x: Tensor,
        v0: Tensor | None,
        *learned: Tensor,
    ) -> tuple[Tensor | None, ...]:
        out = _forward(plan, x, v0, table, seed is not None)
        ctx.save_for_backward(
            x if plan.saves_x else None,
            v0 if plan.saves_v0 else None,
            *(out.kept, table, seed, p, *learned),
        )
        ctx.plan, ctx.dtype, ctx.shape, ctx.has_v0 = plan, x.dtype, x.shape, v0 is not None
        ctx.strides = out.spikes.stride()[1:]
        ctx.set_materialize_grads(False)
        return out.spikes, out.membrane, out.state

    @staticmethod
    def backward(
        ctx: Context, g: Tensor | None, g_u: Tensor | None, g_state: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("a neuron with equations of its own")
        x, v0, kept, table, seed, p, *learned = ctx.saved_tensors
        *_, needs_x, needs_v0 = ctx.needs_input_grad[:6]
        plan, strides = ctx.plan, ctx.strides
        dtype = torch.float32 if ctx.dtype == torch.float16 else ctx.dtype
        x, g = (None if a is None else layout.with_strides(a.to(dtype), strides) for a in (x, g))
        g_u = layout.with_strides(g_u, strides)
        v0, g_state = (layout.state_with_strides(a, strides) for a in (v0, g_state))
        states = (len(plan.layer.rest), *ctx.shape[1:])
        gx = layout.empty(ctx.shape, strides, dtype, table.device) if needs_x else None
        g_v0 = layout.empty(states, strides, table.dtype, table.device) if needs_v0 else None
        job = library.make_job(ctx.shape, table, strides, plan.flags, plan.numbers, dtype.itemsize)
        library.set_mask(job, seed, p)
        job.keeps, job.repeated = _bits(plan.saves), ctx.has_v0
        job.x_stride, job.g_stride, job.gu_stride = (
            0 if a is None else a.stride(0) for a in (x, g, g_u)
        )
        sums = torch.zeros(len(learned), table.shape[1], dtype=torch.float64, device=table.device)
        partial, scratch = library.partial_sums(job, sums), None
        if plan.recomputes:
            size = job.threads, job.T, len(rows(plan.layer.trace)), BLOCK
            scratch = torch.empty(size, dtype=table.dtype, device=table.device)
        library.set_pointers(job, x=x, v0=v0, kept=kept, scratch=scratch, g=g, gu=g_u, gv=g_state)
        library.set_pointers(job, gx=gx, gv0=g_v0, partial=partial, sums=sums)
        if job.N:
            plan.retreat(ctypes.byref(job))
        gradients = (
            (row if a.dim() else row[0]).view(a.shape).to(a.dtype) for row, a in zip(sums, learned)
        )
        gx = None if gx is None else gx.to(ctx.dtype)
        return None, None, None, None, gx, g_v0, *gradients
