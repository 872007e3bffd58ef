"""Running a neuron with equations of its own on a backend: one fused pass over all T each way."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..autograd import Context, refuse_double_backward
from ..call import Call, Result
from ..coefficients import state_dtype
from ..equations import Equations, result
from . import native
from .plan import Prepared, Saved, plan_call
from .record import Rest


def prepare(equations: Equations, call: Call, rest: Rest, backend: ModuleType = native) -> Prepared:
    """The call, which begins at call.v0 or at rest, compiled for a backend.

    rest: for each state its value at rest, a number or the name of a constant. Raises Unsupported
    with the reason if it cannot be compiled.
    """
    backend.check(call)
    return plan_call(equations, call, rest, backend.functions)


def run(
    prepared: Prepared, shape: torch.Size, backend: ModuleType = native
) -> tuple[Result, Tensor]:
    """The outputs of the call, for an x of this shape, and the last states `[states, B, ...]`."""
    plan, call, coefficients = prepared
    table = ops.constants_table(
        [a.item() if isinstance(a, Tensor) and not a.dim() else a for a in coefficients],
        state_dtype(call.x),
        call.x.device,
    )
    if plan.back is None:
        masked = call.seed is not None
        spikes, membrane, state, _ = backend.forward(plan, call.x, call.v0, table, masked)
    else:
        learned = [coefficients[i] for i in plan.options.learned]
        spikes, membrane, state = _Compiled.apply(
            backend, plan, table, call.seed, call.p, call.x, call.v0, *learned
        )
    if call.x.shape != shape:
        spikes = spikes.view(shape)
        membrane = None if membrane is None else membrane.view(shape)
        state = state.view(-1, *shape[1:]) if state.numel() else state
    return result(spikes, membrane, call), state


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        backend: Any,
        plan: Any,
        table: Tensor,
        seed: Tensor | None,
        p: Tensor | None,
        x: Tensor,
        v0: Tensor | None,
        *learned: Tensor,
    ) -> tuple[Tensor | None, ...]:
        out = backend.forward(plan, x, v0, table, seed is not None)
        ctx.save_for_backward(
            x if plan.saves_x else None,
            v0 if plan.saves_v0 else None,
            *(out.kept, table, seed, p, *learned),
        )
        ctx.backend, ctx.plan = backend, plan
        ctx.shape, ctx.strides, ctx.dtype = x.shape, out.spikes.stride()[1:], x.dtype
        ctx.at_rest = v0 is None
        ctx.set_materialize_grads(False)
        return out.spikes, out.membrane, out.state

    @staticmethod
    def backward(
        ctx: Context, g: Tensor | None, g_u: Tensor | None, g_state: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("a neuron with equations of its own")
        *tensors, needs_x, needs_v0 = ctx.needs_input_grad[:7]
        x, v0, kept, table, seed, p, *learned = ctx.saved_tensors  # once, for checkpoint
        saved = Saved(
            *(x, v0, kept, table, seed, p),
            *(ctx.shape, ctx.strides, ctx.dtype, ctx.at_rest, needs_x, needs_v0),
        )
        gx, g_v0, sums = ctx.backend.backward(ctx.plan, saved, g, g_u, g_state)
        gradients = (
            (row if a.dim() else row[0]).view(a.shape).to(a.dtype) for row, a in zip(sums, learned)
        )
        return *[None] * len(tensors), gx, g_v0, *gradients
