"""The recursion in torch with a hand-written backward pass, without an autograd graph over T.

It saves the membrane for backward, or less (see saved.py). It runs on every device and dtype, and
is the default where there is no compiled kernel. The backward pass is the recursion of
docs/methods.md, section 1, in the same notation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..options import CLIF, LIF
from . import clif, layout
from .autograd import Context, refuse_double_backward
from .call import Call, Moments, Result, as_tensor, learns
from .coefficients import Coefficient, leak, over_channels, rest, state_dtype
from .mask import masked_derivative
from .saved import EightBits, decode, eight_bits, encode, pack, unpack


def refuses(call: Call) -> str | None:
    """None: this backend accepts every call."""
    return None


def run(call: Call) -> Result:
    """The outputs of the call."""
    if isinstance(call.neuron, CLIF):
        return clif.run(call, compiled=False)
    record = call.record
    if call.needs_gradient:
        spikes, state, membrane, active, *moments = _LIF.apply(call, *call.inputs)
    else:
        spikes, state, membrane, *moments = _forward(call, record.membrane, record.moments)
        active = None
    return Result(
        spikes,
        state,
        membrane if record.membrane else None,
        Moments(*moments) if record.moments else None,
        active,
    )


def _forward(
    call: Call | _Saved, record_membrane: bool, record_moments: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(spikes, state, membrane, E(u), E(u^2)); None for each that is not recorded."""
    neuron, x = call.neuron, call.x
    assert x is not None
    T, dtype = x.shape[0] * call.repeats, state_dtype(x)
    lam, offset, gain = leak(call.tau, x, neuron.v_reset, neuron.decay_input)
    theta = _broadcast(call.theta, x)
    spikes = (
        torch.empty_like(x)
        if call.repeats == 1
        else torch.empty((T, *x.shape[1:]), dtype=x.dtype, device=x.device)
    )
    membrane = torch.empty_like(spikes, dtype=dtype) if record_membrane else None
    mean = square = None
    if record_moments:
        mean, square = x.new_empty((2, T, layout.channels(x)), dtype=torch.float64)
    adaptation = [_broadcast(p, x) for p in call.adaptation]
    v, w = _start(neuron, x[0].to(dtype), call.v0)
    for t in range(T):
        current = x[t if call.repeats == 1 else 0].to(dtype)
        if adaptation:
            current = current - w
        u = v * lam
        if isinstance(offset, Tensor) or offset:
            u += offset
        u += current * gain
        doubt = u - u  # NaN where u is not finite, as the spike and the next v are then
        u += doubt
        fired = u >= theta
        spikes[t] = fired + doubt
        if membrane is not None:
            membrane[t] = u
        if mean is not None and square is not None:
            mean[t] = layout.channel_mean(u)
            square[t] = layout.channel_mean(u * u)
        v = _reset(u, fired, theta, neuron)
        if adaptation:
            w = _adapt(neuron, adaptation, v, fired, w)
    return spikes, torch.stack((v, w)) if adaptation else v, membrane, mean, square


def _start(neuron: LIF, step: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
    """v and w before the first timestep; step: a tensor like a state."""
    if v0 is None:
        return torch.full_like(step, rest(neuron.v_reset)), torch.zeros_like(step)
    return (v0[0], v0[1]) if neuron.states > 1 else (v0, torch.zeros_like(v0))


def _adapt(
    neuron: LIF, adaptation: Sequence[Coefficient], v: Tensor, fired: Tensor, w: Tensor
) -> Tensor:
    """w after a step of `AdaptiveLIF`, from v after the reset."""
    lam, by_v, by_s = adaptation
    return w * lam + ((v - rest(neuron.v_reset)) * by_v + fired * by_s)


def _reset(u: Tensor, fired: Tensor, theta: float | Tensor, neuron: LIF) -> Tensor:
    """The membrane after the reset."""
    if neuron.v_reset is None:
        return torch.where(fired, u - theta, u)  # theta may be infinite
    return u.masked_fill(fired, neuron.v_reset)


P = TypeVar("P", float | Tensor, Tensor | None)


def _broadcast(p: P, x: Tensor) -> P:
    """A constant without its graph, in the dtype of the state, shaped to broadcast against x."""
    return over_channels(p.detach(), x).to(state_dtype(x)) if isinstance(p, Tensor) else p


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, call: Call, *inputs: float | Tensor | None
    ) -> tuple[Tensor | None, ...]:
        neuron, record, x = call.neuron, call.record, call.x
        spikes, state, membrane, mean, square = _forward(call, True, record.moments)
        assert membrane is not None
        theta, width = _broadcast(call.theta, x), _broadcast(call.width, x)
        parameters = inputs[2:]
        saved_u = _encode_membrane(neuron, membrane, theta, width)
        saves_x = neuron.saves == "recompute" or (learns(call.tau) and neuron.decay_input)
        ctx.save_for_backward(
            saved_u, call.v0, call.seed, call.p, x if saves_x else None, *map(as_tensor, parameters)
        )
        ctx.neuron, ctx.repeats = neuron, call.repeats
        ctx.shape, ctx.x_dtype = spikes.shape, x.dtype
        ctx.floats = tuple(None if isinstance(p, Tensor) else p for p in parameters)
        active = None
        if record.active and spikes.is_contiguous():
            active = _pack_active(call, membrane, saved_u, theta, width)
            ctx.mark_non_differentiable(active)
        ctx.set_materialize_grads(False)
        return spikes, state, membrane if record.membrane else None, active, mean, square

    @staticmethod
    def backward(
        ctx: Context,
        g: Tensor | None,
        g_state: Tensor | None,
        g_membrane: Tensor | None,
        _: None,
        *g_moments: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        saved_u, v0, seed, p, x, *tensors = ctx.saved_tensors
        tau, theta, width, *adaptation = (
            f if t is None else t for t, f in zip(tensors, ctx.floats)
        )
        constants = tau, theta, width, adaptation
        saved = _Saved(saved_u, v0, seed, p, x, *constants, ctx.neuron, ctx.repeats)
        membrane = _restore_membrane(saved, ctx.shape, ctx.x_dtype)
        saved = saved._replace(membrane=membrane)
        _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        gx = None
        if needs_x:
            template = membrane if ctx.repeats == 1 else membrane[:1]
            gx = torch.empty_like(
                template, dtype=ctx.x_dtype if ctx.repeats == 1 else membrane.dtype
            )
        line = _moment_coefficients(g_moments, membrane)
        sums, g_v0 = _backward(saved, g, g_state, g_membrane, line, gx, needs)
        gx = None if gx is None else gx.to(ctx.x_dtype)
        return None, gx, g_v0 if needs_v0 else None, *sums


def _pack_active(
    call: Call,
    membrane: Tensor,
    saved_u: Tensor | None,
    theta: float | Tensor,
    width: Tensor | None,
) -> Tensor:
    """Where h is nonzero in the backward pass, which sees the membrane as it is saved; as bits."""
    neuron, seen = call.neuron, membrane
    if saved_u is not None:
        seen = _decode_membrane(neuron, saved_u, membrane.shape, theta, width, membrane.dtype)
    h = [
        masked_derivative(u - theta, t, width, neuron, call.seed, call.p)[0]
        for t, u in enumerate(seen)
    ]
    return pack(torch.stack(h) != 0)


def _encode_membrane(
    neuron: LIF, membrane: Tensor, theta: float | Tensor, width: Tensor | None
) -> Tensor | None:
    """The membrane `[T, B, ...]` or its code, to save for backward; None if x is saved instead."""
    if neuron.saves == "exact":
        return membrane
    if neuron.saves == "recompute":
        return None
    if neuron.saves == "1bit":
        return pack(neuron.base.derivative(membrane - theta) != 0)
    return encode(neuron.saves, membrane, theta, width, _eight_bits(neuron, membrane))


def _decode_membrane(
    neuron: LIF,
    saved_u: Tensor,
    shape: torch.Size,
    theta: float | Tensor,
    width: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The membrane `[T, B, ...]` from what `_encode_membrane` returned."""
    if neuron.saves == "exact":
        return saved_u
    if neuron.saves == "1bit":
        # any membrane with this h gives the same gradients
        far = 8 * neuron.base.support  # type: ignore[attr-defined]
        return (
            torch.where(unpack(saved_u, math.prod(shape)).view(shape), 0.0, far).to(dtype) + theta
        )
    return decode(neuron.saves, saved_u, theta, width, _eight_bits(neuron, saved_u), dtype)


def _eight_bits(neuron: LIF, a: Tensor) -> EightBits | None:
    parametric = neuron.wrappers[1] is not None
    return (
        eight_bits(neuron.base, neuron.replace, parametric, a.device)
        if neuron.saves == "8bit"
        else None
    )


def _moment_coefficients(
    g_moments: Sequence[Tensor | None], membrane: Tensor
) -> tuple[Tensor, Tensor] | None:
    """(a, b), each `[T, C, ...]`: the gradient of the moments reaches u as gu = a + b u."""
    if all(g is None for g in g_moments):
        return None
    T, C = membrane.shape[0], membrane.shape[2] if membrane.dim() > 2 else 1
    n = max(membrane[0].numel() // C, 1)
    shape = (T, C, *[1] * (membrane.dim() - 3))[: membrane.dim()]
    g_mean, g_square = (membrane.new_zeros(T, C) if g is None else g for g in g_moments)
    a, b = g_mean / n, g_square * (2 / n)
    return a.to(membrane.dtype).view(shape), b.to(membrane.dtype).view(shape)


def _restore_membrane(saved: _Saved, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The membrane that the backward pass uses, `[T, B, ...]`: decoded, or recomputed from x."""
    if saved.membrane is None:
        membrane = _forward(saved, record_membrane=True)[2]
        assert membrane is not None
        return membrane
    template = torch.empty((0, *shape[1:]), dtype=dtype, device=saved.membrane.device)
    used = _broadcast(saved.theta, template), _broadcast(saved.width, template)
    return _decode_membrane(saved.neuron, saved.membrane, shape, *used, state_dtype(template))


class _Saved(NamedTuple):
    """What forward saved for backward."""

    membrane: Tensor | None  # [T, B, ...], or its code; None: recompute it from x
    v0: Tensor | None
    seed: Tensor | None
    p: Tensor | None
    x: Tensor | None  # None unless tau is learned or the membrane is recomputed
    tau: float | Tensor
    theta: float | Tensor
    width: Tensor | None
    adaptation: Sequence[float | Tensor]
    neuron: LIF
    repeats: int


def _backward(
    saved: _Saved,
    g: Tensor | None,
    g_state: Tensor | None,
    g_membrane: Tensor | None,
    line: tuple[Tensor, Tensor] | None,
    gx: Tensor | None,
    needs: Sequence[bool],
) -> tuple[list[Tensor | None], Tensor]:
    """Fill gx and return the gradients of tau, theta, width and adaptation, and that of v0."""
    neuron, membrane = saved.neuron, saved.membrane
    assert membrane is not None
    dtype, v_reset, rho = membrane.dtype, neuron.v_reset, neuron.reset_gradient
    soft = v_reset is None
    lam, _, gain = leak(saved.tau, membrane, v_reset, neuron.decay_input)
    theta, width = _broadcast(saved.theta, membrane), _broadcast(saved.width, membrane)
    needs_tau, needs_theta, needs_width, *_ = needs
    constants = (saved.tau, saved.theta, saved.width, *saved.adaptation)
    d_tau, d_theta, d_width, *d_adaptation = (_Sum(p, n) for p, n in zip(constants, needs))
    adaptation = [_broadcast(p, membrane) for p in saved.adaptation]
    w_seq = _adaptation_currents(saved, adaptation, theta) if any(needs[3:]) or needs_tau else None
    zero = torch.zeros_like(membrane[0])
    c, k = (zero, zero) if g_state is None else _start(neuron, zero, g_state.to(dtype))
    for t in range(membrane.shape[0] - 1, -1, -1):
        u = membrane[t]
        z = u - theta
        fired = u >= theta
        h, h_base = masked_derivative(z, t, width, neuron, saved.seed, saved.p)
        G = zero if g is None else g[t].to(dtype)
        if adaptation:
            if any(needs[3:]) and w_seq is not None:
                v = _reset(u, fired, theta, neuron) - rest(v_reset)
                for total, factor in zip(d_adaptation, (w_seq[t], v, fired)):
                    total.add(k * factor)
            c, G = c + k * adaptation[1], G + k * adaptation[2]
        if rho:
            G = G - (rho * c) * theta if v_reset is None else G + (rho * c) * (v_reset - u)
        Gh = G * h
        delta = Gh + (c if soft else c.masked_fill(fired, 0.0))
        if g_membrane is not None:
            delta = delta + g_membrane[t].to(dtype)
        if line is not None:
            delta = delta + (u * line[1][t] + line[0][t])
        if gx is not None and saved.repeats == 1:
            gx[t] = delta * gain
        elif gx is not None:
            gx[0] = delta * gain if t == membrane.shape[0] - 1 else gx[0] + delta * gain
        if needs_theta:
            d_theta.add(-Gh - c * fired if soft else -Gh)
        if needs_width and width is not None:
            d_width.add(-(z / width) * G * h_base)
        if needs_tau:
            d_tau.add(delta * _leak_distance(saved, t, theta, None if w_seq is None else w_seq[t]))
        if adaptation:
            k = k * adaptation[0] - delta * gain if neuron.temporal_gradient else zero
        c = delta * lam if neuron.temporal_gradient else zero
    scale = saved.tau.double() ** -2 if isinstance(saved.tau, Tensor) and needs_tau else None
    rest_of_sums = [total.value() for total in (d_theta, d_width, *d_adaptation)]
    return [d_tau.value(scale), *rest_of_sums], torch.stack((c, k)) if adaptation else c


def _adaptation_currents(
    saved: _Saved, adaptation: Sequence[Coefficient], theta: float | Tensor
) -> list[Tensor] | None:
    """w before each timestep, recomputed from the membranes; None without adaptation."""
    if not adaptation or saved.membrane is None:
        return None
    w, currents = _start(saved.neuron, saved.membrane[0], saved.v0)[1], []
    for u in saved.membrane:
        currents.append(w)
        fired = u >= theta
        w = _adapt(saved.neuron, adaptation, _reset(u, fired, theta, saved.neuron), fired, w)
    return currents


def _leak_distance(saved: _Saved, t: int, theta: float | Tensor, w: Tensor | None) -> Tensor:
    """tau^2 du/dtau = v[t-1] - rest - x[t], or v[t-1] - rest if the input does not decay.

    w: w[t-1], which is subtracted from x[t].
    """
    neuron, membrane = saved.neuron, saved.membrane
    assert membrane is not None
    if t > 0:
        u = membrane[t - 1]
        v = _reset(u, u >= theta, theta, neuron)
    else:
        v = _start(neuron, membrane[0], saved.v0)[0]
    distance = v - rest(neuron.v_reset)
    if saved.x is None or not neuron.decay_input:
        return distance
    x = saved.x[t if saved.repeats == 1 else 0].to(distance.dtype)
    return distance - (x if w is None else x - w)


class _Sum:
    """A gradient summed in float64, per channel, per neuron or overall, like the parameter."""

    def __init__(self, parameter: float | Tensor | None, needed: bool) -> None:
        self.parameter = parameter if isinstance(parameter, Tensor) and needed else None
        self.total: float | Tensor = 0.0

    def add(self, term: Tensor) -> None:
        if self.parameter is None:
            return
        dims = [d for d in range(term.dim()) if not 1 <= d <= self.parameter.dim()]
        self.total = self.total + term.sum(dims, dtype=torch.float64)

    def value(self, scale: Tensor | None = None) -> Tensor | None:
        if self.parameter is None:
            return None
        total = torch.as_tensor(self.total, dtype=torch.float64, device=self.parameter.device)
        return (total if scale is None else total * scale).to(self.parameter.dtype)
