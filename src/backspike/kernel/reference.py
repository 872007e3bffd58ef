"""The definition: the recursion in plain torch, differentiated by autograd.

All other backends are tested against this file. It builds a graph over all T whatever `memory`
says, and is written to be read and compared with, not to be fast. Where u is NaN or infinite, the
spike and all that follows are NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..options import CLIF
from .autograd import Context, refuse_double_backward
from .call import Moments, Result
from .coefficients import leak, over_channels, rest, state_dtype
from .mask import dropped_at
from .saved import pack

if TYPE_CHECKING:
    from .call import Call


def refuses(call: Call) -> str | None:
    """None: this backend accepts every call."""
    return None


def run(call: Call) -> Result:
    """The outputs of the call, with an autograd graph over all T."""
    neuron, record, complementary = call.neuron, call.record, isinstance(call.neuron, CLIF)
    x = call.x.expand(call.repeats, *call.x.shape[1:]) if call.repeats > 1 else call.x
    lam, offset, gain = leak(call.tau, x, neuron.v_reset, neuron.decay_input)
    dtype = state_dtype(x)
    v = torch.full_like(x[0], rest(neuron.v_reset), dtype=dtype) if call.v0 is None else call.v0
    m = torch.zeros_like(x[0], dtype=dtype)  # the second state, used by CLIF and AdaptiveLIF
    if neuron.states > 1 and call.v0 is not None:
        v, m = call.v0
    lam_w, by_v, by_s = (
        p.to(dtype) if isinstance(p, Tensor) else p
        for p in (over_channels(p, x) for p in call.adaptation or (0.0, 0.0, 0.0))
    )
    theta = over_channels(call.theta, x)
    if isinstance(theta, Tensor):
        theta = theta.to(dtype)
    spikes, membrane = [], []
    for t in range(x.shape[0]):
        if not neuron.temporal_gradient:
            v, m = v.detach(), m.detach()
        current = x[t].to(dtype) - m if call.adaptation else x[t].to(dtype)
        u = (lam * v + offset) + gain * current
        s = surrogate_spike(u, theta, t, call)
        s_reset = s.detach() + neuron.reset_gradient * (s - s.detach())
        if not isinstance(theta, Tensor) and math.isinf(theta):
            v = u  # which never spikes; 0 times infinity would be NaN
        elif complementary:
            m = m * torch.sigmoid(u * (1 - lam)) + s
            v = u - (theta + torch.sigmoid(m)) * s_reset
        else:
            v = (
                u - theta * s_reset
                if neuron.v_reset is None
                else (1 - s_reset) * u + s_reset * neuron.v_reset
            )
        if call.adaptation:
            m = lam_w * m + (by_v * (v - rest(neuron.v_reset)) + by_s * s)
        spikes.append(s)
        membrane.append(u)
    v = torch.stack((v, m)) if neuron.states > 1 else v
    u_seq = torch.stack(membrane)
    moments = membrane_moments(u_seq) if record.moments else None
    active = _active(u_seq.detach(), theta, call) if record.active else None
    return Result(
        torch.stack(spikes).to(x.dtype), v, u_seq if record.membrane else None, moments, active
    )


def _active(u_seq: Tensor, theta: float | Tensor, call: Call) -> Tensor:
    """Where the line in `surrogate_spike` has a nonzero slope, packed as bits."""
    z = u_seq - (theta.detach() if isinstance(theta, Tensor) else theta)
    y = z if call.width is None else z / over_channels(call.width.detach().to(z.dtype), call.x)
    h = call.neuron.base.derivative(y)
    if call.seed is not None and call.p is not None:
        m = dropped_at(call.seed, 0, z.shape, call.p)
        other = call.neuron.replace
        h = torch.where(m, 0.0 if other is None else other.derivative(z), h)
    return pack(h != 0)


def membrane_moments(u_seq: Tensor) -> Moments:
    """The moments of the membrane `[T, B, ...]` over batch and space."""
    T, C = u_seq.shape[0], u_seq.shape[2] if u_seq.dim() > 2 else 1
    samples = u_seq.double().reshape(T, -1, C, u_seq.shape[3:].numel())
    return Moments(samples.mean((1, 3)), (samples**2).mean((1, 3)))


class _OnceDifferentiable(torch.autograd.Function):
    """The identity, differentiable once: the slope of the line below is not a function of u."""

    @staticmethod
    def forward(ctx: Context, s: Tensor) -> Tensor:
        return s.view_as(s)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Tensor:
        refuse_double_backward()
        return g


def surrogate_spike(u: Tensor, theta: float | Tensor, t: int, call: Call) -> Tensor:
    """Forward, a step function; backward, a line of slope h in z = u - theta (z/w with width w)."""
    return _OnceDifferentiable.apply(_spike_line(u, theta, t, call))


def _spike_line(u: Tensor, theta: float | Tensor, t: int, call: Call) -> Tensor:
    neuron = call.neuron
    # an Integrator never spikes, and z - z.detach() would always be NaN
    if not isinstance(theta, Tensor) and math.isinf(theta):
        return (u - u).detach()
    z = u - theta
    y = z if call.width is None else z / over_channels(call.width.to(z.dtype), call.x)
    h = neuron.base.derivative(y.detach())
    step = (u.detach() >= (theta.detach() if isinstance(theta, Tensor) else theta)).to(u.dtype)
    if call.seed is None or call.p is None:
        return step + (y - y.detach()) * h
    m = dropped_at(call.seed, t * u.numel(), u.shape, call.p).to(u.dtype)
    if neuron.rescale:
        h = h / (1 - call.p.to(h))
    s = step + (y - y.detach()) * h.masked_fill(m.bool(), 0.0)
    if neuron.replace is not None:
        s = s + (z - z.detach()) * (neuron.replace.derivative(z.detach()) * m)
    return s
