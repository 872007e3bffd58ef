"""The recursion in torch with its backward written by hand: no graph over T; kept is the membrane, or less (see saved.py).

Runs on every device and dtype, and is the default where no compiled kernel exists. The backward is the recursion of
docs/methods.md, section 1; letters as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .call import Moments, Result
from .coefficients import leak, over_channels, rest, state_dtype
from .mask import dropped_at
from .saved import keep, pack, reach, recall, unpack

if TYPE_CHECKING:
    from .call import Call, Rule


def refuses(call: Call) -> str | None:
    return None


def run(call: Call) -> Result:
    learned = (call.x, call.v0, call.tau, call.theta, call.width)
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in learned):
        spikes, state, membrane, active, *moments = _LIF.apply(call, *learned)
    else:
        spikes, state, membrane, *moments = _forward(call, record=call.rule.record_membrane)
        active = None
    return Result(
        spikes,
        state,
        membrane if call.rule.record_membrane else None,
        Moments(*moments) if call.rule.record_moments else None,
        active,
    )


def _forward(
    call: Call | _Saved, record: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(spikes, state, membrane if `record`, E(u) and E(u^2) if the rule asks for moments)."""
    rule, x = call.rule, call.x
    T, dtype = x.shape[0] * call.repeats, state_dtype(x)
    lam, offset, gain = leak(call.tau, x, rule.v_reset, rule.decay_input)
    theta = _as_used(call.theta, x)
    spikes = (
        torch.empty_like(x)
        if call.repeats == 1
        else torch.empty((T, *x.shape[1:]), dtype=x.dtype, device=x.device)
    )
    membrane = torch.empty_like(spikes, dtype=dtype) if record else None
    mean = square = None
    if rule.record_moments:
        mean, square = x.new_empty((2, T, x.shape[2] if x.dim() > 2 else 1), dtype=torch.float64)
    v = torch.full_like(x[0], rest(rule.v_reset), dtype=dtype) if call.v0 is None else call.v0
    for t in range(T):
        u = v * lam
        if isinstance(offset, Tensor) or offset:
            u += offset
        u += x[t if call.repeats == 1 else 0].to(dtype) * gain
        fired = u >= theta
        spikes[t] = fired
        if membrane is not None:
            membrane[t] = u
        if mean is not None and square is not None:
            mean[t] = channel_mean(u)
            square[t] = channel_mean(u * u)
        v = (
            u - theta * fired.to(dtype)
            if rule.v_reset is None
            else u.masked_fill(fired, rule.v_reset)
        )
    return spikes, v, membrane, mean, square


def channel_mean(u: Tensor) -> Tensor:
    """Over batch and space, per channel, in float64."""
    return u.mean([d for d in range(u.dim()) if d != 1], dtype=torch.float64)


def _as_used(p: Any, x: Tensor) -> Any:
    """A constant as it meets x, in the state's dtype."""
    return over_channels(p.detach(), x).to(state_dtype(x)) if isinstance(p, Tensor) else p


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *learned: Any) -> Any:
        rule, x = call.rule, call.x
        spikes, state, membrane, mean, square = _forward(call, record=True)
        assert membrane is not None
        theta, width = _as_used(call.theta, x), _as_used(call.width, x)
        kept = _keep(rule, membrane, theta, width)
        keeps_x = rule.memory == "recompute" or (isinstance(call.tau, Tensor) and rule.decay_input)
        ctx.save_for_backward(
            kept, call.v0, call.seed, call.p, x if keeps_x else None, *map(_tensor, learned[2:])
        )
        ctx.rule, ctx.repeats, ctx.shape, ctx.x_dtype = rule, call.repeats, spikes.shape, x.dtype
        ctx.floats = tuple(None if isinstance(p, Tensor) else p for p in learned[2:])
        active = None
        if rule.record_active and spikes.is_contiguous():
            known = (
                membrane
                if kept is None
                else _recall(rule, kept, membrane.shape, theta, width, membrane.dtype)
            )
            h = [masked_derivative(u - theta, t, width, call)[0] for t, u in enumerate(known)]
            active = pack(torch.stack(h) != 0)
            ctx.mark_non_differentiable(active)
        ctx.set_materialize_grads(False)
        return spikes, state, membrane if rule.record_membrane else None, active, mean, square

    @staticmethod
    def backward(
        ctx: Any,
        g: Tensor | None,
        g_state: Tensor | None,
        g_membrane: Tensor | None,
        _: Any,
        *g_moments: Any,
    ) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; use create_graph=False"
            )
        kept, v0, seed, p, x, *tensors = ctx.saved_tensors
        tau, theta, width = (f if t is None else t for t, f in zip(tensors, ctx.floats))
        saved = _Saved(kept, v0, seed, p, x, tau, theta, width, ctx.rule, ctx.repeats)
        membrane = _again(saved, ctx.shape, ctx.x_dtype)
        saved = saved._replace(membrane=membrane)
        _, needs_x, needs_v0, needs_tau, needs_theta, needs_width = ctx.needs_input_grad
        gx = None
        if needs_x:
            like = membrane if ctx.repeats == 1 else membrane[:1]
            gx = torch.empty_like(like, dtype=ctx.x_dtype if ctx.repeats == 1 else membrane.dtype)
        line = _line(g_moments, membrane)
        sums, g_v0 = _backward(
            saved, g, g_state, g_membrane, line, gx, needs_tau, needs_theta, needs_width
        )
        gx = None if gx is None else gx.to(ctx.x_dtype)
        return None, gx, g_v0 if needs_v0 else None, sums.tau, sums.theta, sums.width


def _keep(rule: Rule, membrane: Tensor, theta: Any, width: Any) -> Tensor | None:
    """What is kept of the membrane, `[T, B, ...]`, itself or in code; None when x is kept instead."""
    if rule.memory == "exact":
        return membrane
    if rule.memory == "recompute":
        return None
    if rule.memory == "1bit":
        return pack(rule.surrogate.derivative(membrane - theta) != 0)
    return keep(rule.memory, membrane, theta, width, _reach(rule, membrane))


def _recall(
    rule: Rule, kept: Tensor, shape: torch.Size, theta: Any, width: Any, dtype: torch.dtype
) -> Tensor:
    if rule.memory == "exact":
        return kept
    if rule.memory == "1bit":
        # any membrane with this h will do
        far = 8 * rule.surrogate.support  # type: ignore[attr-defined]
        return torch.where(unpack(kept, math.prod(shape)).view(shape), 0.0, far).to(dtype) + theta
    return recall(rule.memory, kept, theta, width, _reach(rule, kept), dtype)


def _reach(rule: Rule, a: Tensor) -> Any:
    return reach(rule.surrogate, rule.replace, a.device) if rule.memory == "8bit" else None


def _line(g_moments: Sequence[Tensor | None], membrane: Tensor) -> tuple[Tensor, Tensor] | None:
    """(a, b), each `[T, C, ...]`: what arrives at the moments reaches u as gu = a + b u."""
    if all(g is None for g in g_moments):
        return None
    T, C = membrane.shape[0], membrane.shape[2] if membrane.dim() > 2 else 1
    n = max(membrane[0].numel() // C, 1)
    shape = (T, C, *[1] * (membrane.dim() - 3))[: membrane.dim()]
    g_mean, g_square = (membrane.new_zeros(T, C) if g is None else g for g in g_moments)
    return (g_mean / n).to(membrane.dtype).view(shape), (g_square * (2 / n)).to(
        membrane.dtype
    ).view(shape)


def _tensor(p: Any) -> Tensor | None:
    return p if isinstance(p, Tensor) else None


def _again(saved: _Saved, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The membrane as the backward pass knows it, `[T, B, ...]`."""
    if saved.membrane is None:
        membrane = _forward(saved, record=True)[2]
        assert membrane is not None
        return membrane
    like = torch.empty((0, *shape[1:]), dtype=dtype, device=saved.membrane.device)
    used = _as_used(saved.theta, like), _as_used(saved.width, like)
    return _recall(saved.rule, saved.membrane, shape, *used, state_dtype(like))


class _Saved(NamedTuple):
    membrane: Any  # [T, B, ...], or its code; None: to be computed from x
    v0: Tensor | None
    seed: Tensor | None
    p: Tensor | None
    x: Any  # None where neither tau learns nor the membrane is computed again
    tau: Any
    theta: Any
    width: Tensor | None
    rule: Any
    repeats: int


class _Sums(NamedTuple):
    tau: Tensor | None
    theta: Tensor | None
    width: Tensor | None


def _backward(
    saved: _Saved,
    g: Tensor | None,
    g_state: Tensor | None,
    g_membrane: Tensor | None,
    line: tuple[Tensor, Tensor] | None,
    gx: Tensor | None,
    needs_tau: bool,
    needs_theta: bool,
    needs_width: bool,
) -> tuple[_Sums, Tensor]:
    """Fills gx; returns the gradients of tau, theta and width, and of v0."""
    rule, membrane = saved.rule, saved.membrane
    dtype, soft, rho = membrane.dtype, rule.v_reset is None, rule.reset_gradient
    lam, _, gain = leak(saved.tau, membrane, rule.v_reset, rule.decay_input)
    theta, width = _as_used(saved.theta, membrane), _as_used(saved.width, membrane)
    d_tau = _Sum(saved.tau, needs_tau)
    d_theta = _Sum(saved.theta, needs_theta)
    d_width = _Sum(saved.width, needs_width)
    zero = torch.zeros_like(membrane[0])
    c = zero if g_state is None else g_state.to(dtype)
    for t in range(membrane.shape[0] - 1, -1, -1):
        u = membrane[t]
        z = u - theta
        fired = u >= theta
        h, h_base = masked_derivative(z, t, width, saved)
        G = zero if g is None else g[t].to(dtype)
        if rho:
            G = G - (rho * c) * theta if soft else G + (rho * c) * (rule.v_reset - u)
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
        if needs_width:
            d_width.add(-(z / width) * G * h_base)
        if needs_tau:
            d_tau.add(delta * _leak_distance(saved, t, theta))
        c = delta * lam if rule.temporal_gradient else zero
    scale = None if not needs_tau else saved.tau.double() ** -2
    return _Sums(d_tau.value(scale), d_theta.value(), d_width.value()), c


def masked_derivative(z: Tensor, t: int, width: Any, saved: Any) -> tuple[Tensor, Tensor]:
    """(h with the mask, and its part that belongs to the base, through which a width learns)."""
    rule = saved.rule
    h = (
        rule.surrogate.derivative(z)
        if width is None
        else rule.surrogate.derivative(z / width) / width
    )
    if saved.seed is None or saved.p is None:
        return h, h
    gone = dropped_at(saved.seed, t * z.numel(), z.shape, saved.p)
    kept = (h / (1 - saved.p.to(h)) if rule.rescale else h).masked_fill(gone, 0.0)
    return (
        (kept, kept)
        if rule.replace is None
        else (torch.where(gone, rule.replace.derivative(z), kept), kept)
    )


def _leak_distance(saved: _Saved, t: int, theta: Any) -> Tensor:
    """v[t-1] - rest - x[t] (without x[t] when the input does not decay): tau^2 du/dtau."""
    rule, membrane = saved.rule, saved.membrane
    if t > 0:
        u = membrane[t - 1]
        fired = u >= theta
        v = (
            u - theta * fired.to(u.dtype)
            if rule.v_reset is None
            else u.masked_fill(fired, rule.v_reset)
        )
    else:
        v = torch.full_like(membrane[0], rest(rule.v_reset)) if saved.v0 is None else saved.v0
    distance = v - rest(rule.v_reset)
    return (
        distance - saved.x[t if saved.repeats == 1 else 0].to(distance.dtype)
        if rule.decay_input
        else distance
    )


class _Sum:
    """Accumulates a gradient in float64, over all elements or per channel, as the parameter's shape asks."""

    def __init__(self, parameter: Any, needed: bool) -> None:
        self.parameter, self.needed = parameter, needed
        self.total: Any = 0.0

    def add(self, term: Tensor) -> None:
        dims = (
            [d for d in range(term.dim()) if d != 1]
            if self.parameter.dim()
            else list(range(term.dim()))
        )
        self.total = self.total + term.sum(dims, dtype=torch.float64)

    def value(self, scale: Tensor | None = None) -> Tensor | None:
        if not self.needed:
            return None
        total = torch.as_tensor(self.total, dtype=torch.float64, device=self.parameter.device)
        return (total if scale is None else total * scale).to(self.parameter.dtype)
