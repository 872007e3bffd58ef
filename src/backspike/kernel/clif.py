"""The complementary neuron, CLIF: its backward pass by hand, without a graph over T.

    a[t] = sig(u[t] / tau),   m[t] = m[t-1] a[t] + s[t],   v[t] = u[t] - s[t] (theta + sig(m[t]))

With c and k what arrives at v[t] and m[t] from later steps, and rho the share of the gradient through the reset,

    k' = k - c s sig'(m),   G = g + k' - rho c (theta + sig(m)),   over = k' m[t-1] a (1 - a)
    delta = gu + G h + c + over / tau,   dx = gain delta,   c <- lam delta,   k <- k' a

u, or x, is saved for backward; a, m and sig(m) are computed again from u. A state is v and m,
`[2, B, ...]`. It runs in torch, here, or in C, in `cpu/clif.py`. Sigmoids are rounded differently in
C and in torch, so membranes agree to rounding, and so do spikes unless a membrane lies that close
to the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..options import LIF
from . import layout, ops
from .call import Call, Moments, Result, as_tensor
from .coefficients import leak, over_channels, state_dtype
from .mask import masked_derivative


def run(call: Call, compiled: bool) -> Result:
    """compiled: by the operators of `cpu/clif.py`; else in torch."""
    if call.repeats > 1:
        call = replace(call, x=call.x.expand(call.repeats, *call.x.shape[1:]), repeats=1)
    record = call.record
    if call.needs_gradient:
        spikes, state, membrane, moments = _CLIF.apply(call, compiled, *call.inputs)
    else:
        spikes, state, membrane, moments = _forward(
            call, _constants(call), compiled, record.membrane
        )
    taken = Moments(*moments) if record.moments else None
    return Result(spikes, state, membrane if record.membrane else None, taken)


def _constants(call: Call) -> Tensor:
    """lam, 1 / tau, gain, theta and width, as `ops.table` makes them."""
    lam, _, gain = leak(call.tau, call.x, None, call.neuron.decay_input)
    rows = (lam, 1 - lam, gain, call.theta, 1.0 if call.width is None else call.width)
    return ops.constants_table(rows, state_dtype(call.x), call.x.device).to(call.x.device)


def _forward(call: Call, constants: Tensor, compiled: bool, membrane: bool) -> list[Tensor | None]:
    """[spikes, state, membrane or None, moments `[2, T, C]` or None]."""
    records = [membrane, call.record.moments]
    if not compiled:
        return _forward_torch(call.x, call.v0, constants, records)
    outputs = iter(
        torch.ops.backspike.clif_forward(
            call.x, call.v0, constants, *ops.encode(call), call.seed is not None, records
        )
    )
    return [next(outputs) if wanted else None for wanted in (True, True, *records)]


class _Arriving(NamedTuple):
    """Gradients of spikes, state and membrane, and a and b `[2, T, C]` of what reaches u through the moments, a + b u."""

    g: Tensor | None
    g_state: Tensor | None
    gu: Tensor | None
    line: Tensor | None


class _Saved(NamedTuple):
    u: Tensor | None  # [T, B, ...]; None: to be made from x
    x: Tensor | None
    v0: Tensor | None
    constants: Tensor
    seed: Tensor | None
    p: Tensor | None
    neuron: LIF
    parametric: bool


class _CLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, compiled: bool, *inputs: float | Tensor | None
    ) -> tuple[Tensor | None, ...]:
        neuron, constants = call.neuron, _constants(call)
        again = neuron.saves == "recompute"
        spikes, state, u, moments = _forward(
            call, constants, compiled, call.record.membrane or not again
        )
        assert spikes is not None
        keeps_x = again or (isinstance(call.tau, Tensor) and neuron.decay_input)
        tensors = map(as_tensor, inputs[2:])
        kept = None if again else u, call.x if keeps_x else None, call.v0
        ctx.save_for_backward(*kept, constants, call.seed, call.p, *tensors)
        ctx.neuron, ctx.record, ctx.parametric = neuron, call.record, call.width is not None
        ctx.encoded = ops.encode(call) if compiled else None
        ctx.shape, ctx.strides, ctx.x_dtype = spikes.shape, spikes.stride()[1:], call.x.dtype
        ctx.set_materialize_grads(False)
        return spikes, state, u, moments

    @staticmethod
    def backward(
        ctx: Any,
        g: Tensor | None,
        g_state: Tensor | None,
        gu: Tensor | None,
        g_moments: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; use create_graph=False"
            )
        u, x, v0, constants, seed, p, *parameters = ctx.saved_tensors
        saved = _Saved(u, x, v0, constants, seed, p, ctx.neuron, ctx.parametric)
        _, _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # what was not asked for gets zeros, not None, in compiled code
        measured = g_moments if ctx.record.moments else None
        line = (
            None if measured is None else ops.moment_gradient(measured, ctx.shape, constants.dtype)
        )
        arriving = _Arriving(g, g_state, gu if ctx.record.membrane else None, line)
        if ctx.encoded is None:
            gx, g_v0, sums = _backward_torch(saved, arriving, ctx.shape, ctx.x_dtype, learns)
        else:
            gx, g_v0, sums = torch.ops.backspike.clif_backward(
                *saved[:6], *arriving, ctx.shape, ctx.strides, *ctx.encoded, learns, ctx.x_dtype
            )
        grads = [
            ops.reduce_to(row, p) if needed else None
            for row, p, needed in zip(sums, parameters, needs)
        ]
        if needs[0]:
            grads[0] = ops.reduce_to(sums[0] / parameters[0].double() ** 2, parameters[0])
        return None, None, gx if needs_x else None, g_v0 if needs_v0 else None, *grads


# ------------------------------------------------------------------------------------------------------------- in torch


def _rows(constants: Tensor, step: Tensor) -> list[Tensor]:
    """The constants as they meet a timestep `[B, C, ...]`."""
    return [over_channels(row, step[None]) if len(row) > 1 else row[0] for row in constants]


def _start(x: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
    if v0 is not None:
        return v0[0], v0[1]
    zero = torch.zeros_like(x[0], dtype=state_dtype(x))
    return zero, zero


def _forward_torch(
    x: Tensor, v0: Tensor | None, constants: Tensor, records: Sequence[bool]
) -> list[Tensor | None]:
    lam, per_tau, gain, theta, _ = _rows(constants, x[0])
    spikes, T, dtype = torch.empty_like(x), len(x), state_dtype(x)
    membrane = torch.empty_like(spikes, dtype=dtype) if records[0] else None
    moments = x.new_zeros((2, T, layout.channels(x)), dtype=torch.float64) if records[1] else None
    v, m = _start(x, v0)
    for t in range(T):
        u = v * lam + x[t].to(dtype) * gain
        s = (u >= theta).to(dtype)
        m = m * torch.sigmoid(u * per_tau) + s
        v = u - (theta + torch.sigmoid(m)) * s
        spikes[t] = s
        if membrane is not None:
            membrane[t] = u
        if moments is not None:
            moments[0, t], moments[1, t] = layout.channel_mean(u), layout.channel_mean(u * u)
    return [spikes, torch.stack((v, m)), membrane, moments]


def _complements(u: Tensor, m: Tensor, per_tau: Tensor, theta: Tensor) -> list[Tensor]:
    """m[-1], m[0] ... m[T-1]"""
    found = [m]
    for step in u:
        found.append(found[-1] * torch.sigmoid(step * per_tau) + (step >= theta))
    return found


def _backward_torch(
    saved: _Saved, arriving: _Arriving, shape: Sequence[int], x_dtype: torch.dtype, learns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the state, and the sums `[3, C]` for tau (times tau^2), theta and width."""
    neuron, u_seq = saved.neuron, saved.u
    if u_seq is None:
        assert saved.x is not None
        u_seq = _forward_torch(saved.x, saved.v0, saved.constants, (True, False))[2]
        assert u_seq is not None
    dtype, (lam, per_tau, gain, theta, width) = u_seq.dtype, _rows(saved.constants, u_seq[0])
    v0, m0 = _start(u_seq, saved.v0)
    m_seq = _complements(u_seq, m0, per_tau, theta)
    line = (
        None
        if arriving.line is None
        else [[over_channels(row, u_seq) for row in rows] for rows in arriving.line]
    )
    gx, sums = (
        torch.empty_like(u_seq, dtype=x_dtype),
        _Sums(saved.constants.shape[1], u_seq, learns),
    )
    c, k = _start(u_seq, None if arriving.g_state is None else arriving.g_state.to(dtype))
    zero = torch.zeros_like(u_seq[0])
    for t in range(len(u_seq) - 1, -1, -1):
        u, before, fired = u_seq[t], m_seq[t], u_seq[t] >= theta
        a, b = torch.sigmoid(u * per_tau), torch.sigmoid(m_seq[t + 1])
        w = width if saved.parametric else None
        h, own = masked_derivative(u - theta, t, w, neuron, saved.seed, saved.p)
        k = k - (c * b * (1 - b)).masked_fill(~fired, 0.0)
        G = (
            (zero if arriving.g is None else arriving.g[t].to(dtype))
            + k
            - neuron.reset_gradient * c * (theta + b)
        )
        over = k * before * a * (1 - a)
        delta = G * h + c + over * per_tau
        if arriving.gu is not None:
            delta = delta + arriving.gu[t]
        if line is not None:
            delta = delta + (line[0][t] + line[1][t] * u)
        gx[t] = delta * gain
        if learns & 1:
            v = (
                v0
                if t == 0
                else u_seq[t - 1] - (theta + torch.sigmoid(before)) * (u_seq[t - 1] >= theta)
            )
            leaks = v - saved.x[t].to(dtype) if neuron.decay_input and saved.x is not None else v
            sums.add(0, delta * leaks - over * u)
        sums.add(1, -(G * h) - c * fired)
        sums.add(2, -((u - theta) / width) * G * own)
        c, k = (delta * lam, k * a) if neuron.temporal_gradient else (zero, zero)
    return gx, torch.stack((c, k)), sums.rows


class _Sums:
    """Sums over all elements of a timestep or per channel, in float64, of what learns."""

    def __init__(self, C: int, u: Tensor, learns: int) -> None:
        self.rows, self.learns = u.new_zeros((3, C), dtype=torch.float64), learns
        self.over = [d for d in range(u.dim() - 1) if C == 1 or d != 1]

    def add(self, row: int, term: Tensor) -> None:
        if self.learns >> row & 1:
            self.rows[row] += term.sum(self.over, dtype=torch.float64)
