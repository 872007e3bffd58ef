"""The complementary neuron, CLIF, with its backward written by hand, in C and in torch: no graph over T; kept is u, or x.

    a[t] = sig(u[t] / tau),   m[t] = m[t-1] a[t] + s[t],   v[t] = u[t] - s[t] (theta + sig(m[t]))

With c and k what arrives at v[t] and m[t] from later steps, and rho the share of the gradient through the reset,

    k' = k - c s sig'(m),   G = g + k' - rho c (theta + sig(m)),   over = k' m[t-1] a (1 - a)
    delta = gu + G h + c + over / tau,   dx = gain delta,   c <- lam delta,   k <- k' a

A state is v and m, `[2, B, ...]`; a, m and sig(m) are made again from u. Sigmoids are rounded differently in C and in torch, so
membranes agree to rounding, and so do spikes unless a membrane lies that close to the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import eager, layout, ops
from .call import Moments, Result
from .coefficients import leak, over_channels, state_dtype
from .cpu import library

if TYPE_CHECKING:
    from .call import Call, Rule


def run(call: Call, compiled: bool) -> Result:
    rule, learned = call.rule, (call.x, call.v0, call.tau, call.theta, call.width)
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in learned):
        spikes, state, membrane, moments = _CLIF.apply(call, compiled, *learned)
    else:
        spikes, state, membrane, moments = _forward(
            call, _constants(call), compiled, rule.record_membrane
        )
    taken = Moments(*moments) if rule.record_moments else None
    return Result(spikes, state, membrane if rule.record_membrane else None, taken)


def _constants(call: Call) -> Tensor:
    """lam, 1 / tau, gain, theta and width, as `operators.table` makes them."""
    lam, _, gain = leak(call.tau, call.x, None, call.rule.decay_input)
    rows = (lam, 1 - lam, gain, call.theta, 1.0 if call.width is None else call.width)
    return ops.table(rows, state_dtype(call.x), call.x.device).to(call.x.device)


def _forward(call: Call, constants: Tensor, compiled: bool, membrane: bool) -> list[Any]:
    """[spikes, state, membrane or None, moments `[2, T, C]` or None]."""
    records = [membrane, call.rule.record_moments]
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
    rule: Rule
    parametric: bool


class _CLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, compiled: bool, *learned: Any) -> Any:
        rule, again = call.rule, call.rule.memory == "recompute"
        constants = _constants(call)
        spikes, state, u, moments = _forward(
            call, constants, compiled, rule.record_membrane or not again
        )
        keeps_x = again or (isinstance(call.tau, Tensor) and rule.decay_input)
        tensors = [p if isinstance(p, Tensor) else None for p in learned[2:]]
        kept = None if again else u, call.x if keeps_x else None, call.v0
        ctx.save_for_backward(*kept, constants, call.seed, call.p, *tensors)
        ctx.rule, ctx.parametric, ctx.encoded = (
            rule,
            call.width is not None,
            ops.encode(call) if compiled else None,
        )
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
    ) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; use create_graph=False"
            )
        u, x, v0, constants, seed, p, *parameters = ctx.saved_tensors
        saved = _Saved(u, x, v0, constants, seed, p, ctx.rule, ctx.parametric)
        _, _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # what was not asked for gets zeros, not None, in compiled code
        measured = g_moments if ctx.rule.record_moments else None
        line = None if measured is None else ops.line(measured, ctx.shape, constants.dtype)
        arriving = _Arriving(g, g_state, gu if ctx.rule.record_membrane else None, line)
        if ctx.encoded is None:
            gx, g_v0, sums = _backward_torch(saved, arriving, ctx.shape, ctx.x_dtype, learns)
        else:
            gx, g_v0, sums = torch.ops.backspike.clif_backward(
                *saved[:6], *arriving, ctx.shape, ctx.strides, *ctx.encoded, learns, ctx.x_dtype
            )
        grads = [
            ops.reduced(row, p) if needed else None
            for row, p, needed in zip(sums, parameters, needs)
        ]
        if needs[0]:
            grads[0] = ops.reduced(sums[0] / parameters[0].double() ** 2, parameters[0])
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
) -> list[Any]:
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
            moments[0, t], moments[1, t] = eager.channel_mean(u), eager.channel_mean(u * u)
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
    rule, u_seq = saved.rule, saved.u
    if u_seq is None:
        u_seq = _forward_torch(saved.x, saved.v0, saved.constants, (True, False))[2]  # type: ignore[arg-type]
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
        h, own = eager.masked_derivative(u - theta, t, width if saved.parametric else None, saved)
        k = k - (c * b * (1 - b)).masked_fill(~fired, 0.0)
        G = (
            (zero if arriving.g is None else arriving.g[t].to(dtype))
            + k
            - rule.reset_gradient * c * (theta + b)
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
            leaks = v - saved.x[t].to(dtype) if rule.decay_input and saved.x is not None else v
            sums.add(0, delta * leaks - over * u)
        sums.add(1, -(G * h) - c * fired)
        sums.add(2, -((u - theta) / width) * G * own)
        c, k = (delta * lam, k * a) if rule.temporal_gradient else (zero, zero)
    return gx, torch.stack((c, k)), sums.rows


class _Sums:
    """Sums over all elements of a timestep or per channel, in float64, of what learns."""

    def __init__(self, C: int, u: Tensor, learns: int) -> None:
        self.rows, self.learns = u.new_zeros((3, C), dtype=torch.float64), learns
        self.over = [d for d in range(u.dim() - 1) if C == 1 or d != 1]

    def add(self, row: int, term: Tensor) -> None:
        if self.learns >> row & 1:
            self.rows[row] += term.sum(self.over, dtype=torch.float64)


# ----------------------------------------------------------------------------------------------------------------- in C

ops.library.define(
    "clif_forward(Tensor x, Tensor? v0, Tensor constants, int[] flags, float[] numbers, bool masked, bool[] records)"
    " -> Tensor[]"
)
ops.library.define(
    "clif_backward(Tensor? u, Tensor? x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p, Tensor? g, Tensor? g_state,"
    " Tensor? gu, Tensor? line, SymInt[] shape, SymInt[] strides, int[] flags, float[] numbers, int learns, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)"
)


def _forward_outputs(x: Tensor, masked: bool, records: Sequence[bool]) -> list[Tensor | None]:
    strides, dtype = layout.order(x[0], masked), state_dtype(x)
    return [
        layout.empty(x.shape, strides, x.dtype, x.device),
        layout.empty((2, *x.shape[1:]), strides, dtype, x.device),
        layout.empty(x.shape, strides, dtype, x.device) if records[0] else None,
        torch.zeros((2, len(x), layout.channels(x)), dtype=torch.float64, device=x.device)
        if records[1]
        else None,
    ]


def _backward_outputs(
    constants: Tensor, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        layout.empty(shape, strides, dtype, constants.device),
        layout.empty((2, *shape[1:]), strides, constants.dtype, constants.device),
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=constants.device),
    )


@torch.library.register_fake("backspike::clif_forward", lib=ops.library)
def _(x: Any, v0: Any, constants: Any, flags: Any, numbers: Any, masked: bool, records: Any) -> Any:
    return [a for a in _forward_outputs(x, masked, records) if a is not None]


@torch.library.register_fake("backspike::clif_backward", lib=ops.library)
def _(u: Any, x: Any, v0: Any, constants: Any, *rest: Any) -> Any:
    shape, strides, _, _, _, dtype = rest[6:]
    return _backward_outputs(constants, shape, strides, dtype)


@torch.library.impl(ops.library, "clif_forward", "CPU")
def _clif_forward(
    x: Any, v0: Any, constants: Any, flags: Any, numbers: Any, masked: bool, records: Any
) -> Any:
    if x.dtype == torch.float16:
        spikes, *others = _clif_forward(x.float(), v0, constants, flags, numbers, masked, records)
        return [spikes.half(), *others]
    outputs = spikes, state, u, sums = _forward_outputs(x, masked, records)
    assert spikes is not None
    strides = spikes.stride()[1:]
    x, v0 = layout.arranged(x, strides), _state(v0, strides)
    job = library.make_job(spikes.shape, constants, strides, flags, numbers, x.element_size())
    job.x_stride = x.stride(0)
    partial = None if sums is None else torch.zeros(job.chunks, sums.numel(), dtype=torch.float64)
    library.set_pointers(job, x=x, v0=v0, s=spikes, u=u, v=state, partial=partial, sums=sums)
    library.call("clif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    return [a for a in outputs if a is not None]


@torch.library.impl(ops.library, "clif_backward", "CPU")
def _clif_backward(
    u: Any,
    x: Any,
    v0: Any,
    constants: Any,
    seed: Any,
    p: Any,
    g: Any,
    g_state: Any,
    gu: Any,
    line: Any,
    shape: Sequence[int],
    strides: Sequence[int],
    flags: Any,
    numbers: Any,
    learns: int,
    dtype: Any,
) -> Any:
    if dtype == torch.float16:
        x, g = (None if a is None else a.float() for a in (x, g))
        given = (
            u,
            x,
            v0,
            constants,
            seed,
            p,
            g,
            g_state,
            gu,
            line,
            shape,
            strides,
            flags,
            numbers,
            learns,
        )
        gx, *others = _clif_backward(*given, torch.float32)
        return gx.half(), *others
    outputs = gx, g_v0, sums = _backward_outputs(constants, shape, strides, dtype)
    x, g, gu = (layout.arranged(a, strides) for a in (x, g, gu))
    v0, g_state = _state(v0, strides), _state(g_state, strides)
    job = library.make_job(shape, constants, strides, flags, numbers, dtype.itemsize)
    job.learns, job.keeps = learns, ops.KEEPS.index("recompute" if u is None else "exact")
    library.set_mask(job, seed, p)
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if a is None else a.stride(0) for a in (x, g, gu)
    )
    partial = torch.zeros(job.chunks, sums.numel(), dtype=torch.float64) if learns else None
    scratch = torch.empty(
        (job.threads, _PASTS, job.T, library.function("lif_block")()), dtype=constants.dtype
    )
    library.set_pointers(job, x=x, v0=v0, u=u, g=g, gu=gu, gv=g_state, line=line, gx=gx, gv0=g_v0)
    library.set_pointers(job, scratch=scratch, partial=partial, sums=sums)
    library.call("clif_backward", dtype, job)
    return outputs


_PASTS = 4  # of clif.c


def _state(a: Tensor | None, strides: Sequence[int]) -> Tensor | None:
    """`[2, B, ...]` as the kernel takes it: two rows without a gap."""
    if a is None or (a.stride(0) == math.prod(a.shape[1:]) and layout.arranged(a, strides) is a):
        return a
    return layout.empty(a.shape, strides, a.dtype, a.device).copy_(a)
