"""The complementary LIF neuron (CLIF): hand-written backward pass, no autograd graph over T.

    a[t] = sig(u[t] / tau),   m[t] = m[t-1] a[t] + s[t],   v[t] = u[t] - s[t] (theta + sig(m[t]))

Let c and k be the gradients of v[t] and m[t] from later steps, and rho the factor by which the
gradient through the reset is scaled:

    k' = k - c s sig'(m),   G = g + k' - rho c (theta + sig(m)),   over = k' m[t-1] a (1 - a)
    delta = gu + G h + c + over / tau,   dx = gain delta,   c <- lam delta,   k <- k' a

Either u or x is saved for backward; a, m and sig(m) are recomputed from u. The state is v and m,
`[2, B, ...]`. This file is the implementation in torch; `cpu/clif.py` is the one in C. Sigmoids are
rounded differently in C and in torch, so membranes agree only up to rounding, and spikes agree
unless a membrane is that close to the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import LIF
from . import layout, ops
from .autograd import Context, refuse_double_backward
from .call import Call, Moments, Result, as_tensor, learns
from .coefficients import leak, over_channels, state_dtype
from .mask import masked_derivative


def run(call: Call, compiled: bool) -> Result:
    """Run the call: compiled by the operators of `cpu/clif.py`, otherwise in torch."""
    if call.per_neuron:
        return run(call.flattened(), compiled).unflattened(call.x.shape[2:])
    if call.repeats > 1:
        call = replace(call, x=call.x.expand(call.repeats, *call.x.shape[1:]), repeats=1)
    record = call.record
    if call.needs_gradient:
        spikes, state, membrane, moments = _CLIF.apply(call, compiled, *call.inputs)
    else:
        spikes, state, membrane, moments = _forward(
            call, _constants(call), compiled, record.membrane
        )
    return Result(
        spikes,
        state,
        membrane if record.membrane else None,
        Moments(*moments) if record.moments else None,
    )


def _constants(call: Call) -> Tensor:
    """lam, 1 / tau, gain, theta and width as the rows of one tensor; see `ops.constants_table`."""
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


class _Incoming(NamedTuple):
    """The gradients of the outputs."""

    g: Tensor | None  # of the spikes
    g_state: Tensor | None
    gu: Tensor | None  # of the membrane
    line: Tensor | None  # [2, T, C]: a and b of a + b u, the gradient of u through the moments


class _Saved(NamedTuple):
    u: Tensor | None  # [T, B, ...]; None: recompute it from x
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
        ctx: Context, call: Call, compiled: bool, *inputs: float | Tensor | None
    ) -> tuple[Tensor | None, ...]:
        neuron, constants = call.neuron, _constants(call)
        recompute = neuron.saves == "recompute"
        spikes, state, u, moments = _forward(
            call, constants, compiled, call.record.membrane or not recompute
        )
        assert spikes is not None
        saves_x = recompute or (learns(call.tau) and neuron.decay_input)
        tensors = map(as_tensor, inputs[2:])
        saved_tensors = None if recompute else u, call.x if saves_x else None, call.v0
        ctx.save_for_backward(*saved_tensors, constants, call.seed, call.p, *tensors)
        ctx.neuron, ctx.record, ctx.parametric = neuron, call.record, call.width is not None
        ctx.encoded = ops.encode(call) if compiled else None
        ctx.shape, ctx.strides, ctx.x_dtype = spikes.shape, spikes.stride()[1:], call.x.dtype
        ctx.set_materialize_grads(False)
        return spikes, state, u, moments

    @staticmethod
    def backward(
        ctx: Context,
        g: Tensor | None,
        g_state: Tensor | None,
        gu: Tensor | None,
        g_moments: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        u, x, v0, constants, seed, p, *parameters = ctx.saved_tensors
        saved = _Saved(u, x, v0, constants, seed, p, ctx.neuron, ctx.parametric)
        _, _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # in compiled code, outputs that were not requested receive zeros instead of None
        wanted = g_moments if ctx.record.moments else None
        line = None if wanted is None else ops.moment_gradient(wanted, ctx.shape, constants.dtype)
        incoming = _Incoming(g, g_state, gu if ctx.record.membrane else None, line)
        if ctx.encoded is None:
            gx, g_v0, sums = _backward_torch(saved, incoming, ctx.shape, ctx.x_dtype, learns)
        else:
            gx, g_v0, sums = torch.ops.backspike.clif_backward(
                *saved[:6], *incoming, ctx.shape, ctx.strides, *ctx.encoded, learns, ctx.x_dtype
            )
        grads = ops.learned_gradients(sums, parameters, needs)
        return None, None, gx if needs_x else None, g_v0 if needs_v0 else None, *grads


# ----------------------------------------------------------------------------------------- in torch


def _rows(constants: Tensor, step: Tensor) -> list[Tensor]:
    """The constants, shaped to broadcast against a timestep `[B, C, ...]`."""
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
        doubt = u - u  # NaN where u is not finite
        u = u + doubt
        s = (u >= theta) + doubt
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
    complements = [m]
    for step in u:
        complements.append(complements[-1] * torch.sigmoid(step * per_tau) + (step >= theta))
    return complements


def _backward_torch(
    saved: _Saved, incoming: _Incoming, shape: Sequence[int], x_dtype: torch.dtype, learns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x and of the state, and the sums `[3, C]` for tau, theta and width.

    The sum for tau is tau^2 times its gradient.
    """
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
        if incoming.line is None
        else [[over_channels(row, u_seq) for row in rows] for rows in incoming.line]
    )
    gx = torch.empty_like(u_seq, dtype=x_dtype)
    sums = _Sums(saved.constants.shape[1], u_seq, learns)
    c, k = _start(u_seq, None if incoming.g_state is None else incoming.g_state.to(dtype))
    zero = torch.zeros_like(u_seq[0])
    for t in range(len(u_seq) - 1, -1, -1):
        u, before, fired = u_seq[t], m_seq[t], u_seq[t] >= theta
        a, b = torch.sigmoid(u * per_tau), torch.sigmoid(m_seq[t + 1])
        w = width if saved.parametric else None
        h, h_base = masked_derivative(u - theta, t, w, neuron, saved.seed, saved.p)
        k = k - (c * b * (1 - b)).masked_fill(~fired, 0.0)
        G = (
            (zero if incoming.g is None else incoming.g[t].to(dtype))
            + k
            - neuron.reset_gradient * c * (theta + b)
        )
        over = k * before * a * (1 - a)
        delta = G * h + c + over * per_tau
        if incoming.gu is not None:
            delta = delta + incoming.gu[t]
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
        sums.add(2, -((u - theta) / width) * G * h_base)
        c, k = (delta * lam, k * a) if neuron.temporal_gradient else (zero, zero)
    return gx, torch.stack((c, k)), sums.rows


class _Sums:
    """Sums of the gradients of learned constants in float64, over all elements or per channel."""

    def __init__(self, C: int, u: Tensor, learns: int) -> None:
        self.rows = u.new_zeros((3, C), dtype=torch.float64)
        self.learns = learns
        self.over = [d for d in range(u.dim() - 1) if C == 1 or d != 1]

    def add(self, row: int, term: Tensor) -> None:
        if self.learns >> row & 1:
            self.rows[row] += term.sum(self.over, dtype=torch.float64)
