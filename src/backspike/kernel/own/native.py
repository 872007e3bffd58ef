"""Both directions in C: the functions that c.py writes, called with the job of other kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import Unsupported
from .. import layout, ops
from ..call import Call
from ..coefficients import state_dtype
from ..cpu import library
from .backward import Backward, Options, rows
from .build import function
from .c import BLOCK, Layer, backward_text, forward_text
from .plan import Gradients, Outputs, Plan, Saved

Function = Callable[[Any], object]
ROWS = 63  # that a timestep may have: their flags are the bits of an integer


def check(call: Call) -> None:
    """Raise Unsupported for what no C function can do."""
    if call.x.device.type != "cpu":
        raise Unsupported(f"compiled ones run on the CPU, but the input is on {call.x.device}")
    if torch.compiler.is_compiling():
        raise Unsupported("torch.compile compiles them")
    if (name := ops.without_formula(call.neuron, ops.KINDS.values())) is not None:
        raise Unsupported(f"there is no formula in C for {name}")


def functions(
    layer: Layer, options: Options, back: Backward | None
) -> tuple[Function, Function | None]:
    """The functions of both directions. Raises Unsupported if they cannot be compiled."""
    if len(rows(layer.trace)) > ROWS:
        raise Unsupported(f"its spike variable and states are more than {ROWS} values")
    backward = None if back is None else function(backward_text(layer, options), "backward")
    return function(forward_text(layer), "forward"), backward


def forward(plan: Plan, x: Tensor, v0: Tensor | None, table: Tensor, masked: bool) -> Outputs:
    """The outputs for x `[T, B, ...]` and the first states, or None at rest."""
    record, dtype, saves = plan.record, state_dtype(x), plan.saves
    if x.dtype == torch.float16:
        out = forward(plan, x.float(), v0, table, masked)
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
        plan.functions[0](ctypes.byref(job))
    return Outputs(spikes, membrane, state, kept)


def _bits(flags: Sequence[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def backward(
    plan: Plan, saved: Saved, g: Tensor | None, g_u: Tensor | None, g_state: Tensor | None
) -> Gradients:
    """The gradients of x, of the first states and of the learned coefficients."""
    x, v0, kept, table, seed, p, shape, strides, *_ = saved
    dtype = torch.float32 if saved.dtype == torch.float16 else saved.dtype
    x, g = (None if a is None else layout.with_strides(a.to(dtype), strides) for a in (x, g))
    g_u = layout.with_strides(g_u, strides)
    v0, g_state = (layout.state_with_strides(a, strides) for a in (v0, g_state))
    gx = layout.empty(shape, strides, dtype, table.device) if saved.needs_x else None
    states = (len(plan.layer.rest), *shape[1:])
    g_v0 = layout.empty(states, strides, table.dtype, table.device) if saved.needs_v0 else None
    job = library.make_job(shape, table, strides, plan.flags, plan.numbers, dtype.itemsize)
    library.set_mask(job, seed, p)
    job.keeps, job.repeated = _bits(plan.saves), not saved.at_rest
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if a is None else a.stride(0) for a in (x, g, g_u)
    )
    learned = len(plan.options.learned), table.shape[1]
    sums = torch.zeros(learned, dtype=torch.float64, device=table.device)
    partial, scratch = library.partial_sums(job, sums), None
    if plan.recomputes:
        size = job.threads, job.T, len(rows(plan.layer.trace)), BLOCK
        scratch = torch.empty(size, dtype=table.dtype, device=table.device)
    library.set_pointers(job, x=x, v0=v0, kept=kept, scratch=scratch, g=g, gu=g_u, gv=g_state)
    library.set_pointers(job, gx=gx, gv0=g_v0, partial=partial, sums=sums)
    if job.N:
        plan.functions[1](ctypes.byref(job))
    return Gradients(None if gx is None else gx.to(saved.dtype), g_v0, sums)
