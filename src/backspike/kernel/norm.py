"""BatchNorm and a neuron, optionally with a 2x2 pool or an addition, as one operator: `norm_lif`.

Where a compiled kernel supports it (norm.c on the CPU, triton/norm.py on a GPU), the normalised
current and the membrane are never stored in memory: only the input, the constants of the channels
and the seed are saved for backward. Otherwise torch's batch_norm, the neuron's backend and the pool
run separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import Unsupported
from . import layout, ops
from .autograd import Context, refuse_double_backward
from .call import Call, Moments, Result, as_tensor
from .coefficients import state_dtype
from .cpu.pool import avg_pool, max_pool
from .dispatch import choose, dispatch
from .norm_ops import POOLS, Forward

_OPERATORS = {"cpu": "norm_lif", "triton": "triton_norm_lif"}


@dataclass(frozen=True, eq=False)
class Norm:
    """torch's BatchNorm of `[T, B, C, ...]` with T folded into the batch.

    training: normalise by the statistics of the input over T, batch and space, and move the running
    statistics, if there are any, towards them by the fraction `momentum`. Otherwise normalise by
    the running statistics.
    """

    weight: Tensor | None  # [C]
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float


def norm_lif(
    call: Call,
    norm: Norm,
    pool: str | None = None,
    backend: str = "auto",
    want_state: bool = True,
    add: Tensor | None = None,
) -> Result:
    """BatchNorm of `call.x`, `[T, B, C, ...]`, then the neuron of `call`, then a pool of spikes.

    pool: None, "avg" or "max": windows of 2x2 with stride 2, ignoring an odd last row or column.
    add: a tensor in the shape of the spikes to add to them; not with a pool. If x stands for
    `call.repeats` identical timesteps, its gradient is summed over them and the running variance
    counts all of them. want_state=False saves writing the state, which may then be returned empty.

    The normalised current has the dtype of the state, so it is not rounded to 16 bits. If `refuses`
    returns None, x, five numbers per channel and the seed are saved for backward, whatever the
    neuron's `memory`; otherwise whatever the separate parts save. Raises ValueError for arguments
    that do not fit together.
    """
    _check(call, norm, pool)
    if add is not None and (
        pool or list(add.shape) != [call.x.shape[0] * call.repeats, *call.x.shape[1:]]
    ):
        raise ValueError(
            f"add must have the shape of the spikes, without a pool, got shape {list(add.shape)}"
        )
    try:
        return _run(call, norm, pool, backend, want_state, add)
    except Unsupported:  # a kernel that does not compile on first use, as in `dispatch`
        if backend != "auto" or not refuses(call, norm):
            raise
        return _run(call, norm, pool, backend, want_state, add)


def _run(
    call: Call, norm: Norm, pool: str | None, backend: str, want_state: bool, add: Tensor | None
) -> Result:
    name = choose(backend, call)[0]
    if refuses(call, norm, backend):
        result = _separate(call, norm, pool, backend)
    elif pool and name == "cpu" and not layout.channels_last(call.x[0]):
        result = _fused(name, call, norm, None, want_state)
        result = result._replace(spikes=_pooled(result.spikes, pool))
    elif add is not None and add.dtype == call.x.dtype:
        return _fused(name, call, norm, pool, want_state, add)
    else:
        result = _fused(name, call, norm, pool, want_state)
    return result if add is None else result._replace(spikes=result.spikes + add, bits=None)


def refuses(call: Call, norm: Norm, backend: str = "auto") -> str | None:
    """Why the parts run separately; None if they run as one operator."""
    name, reason = choose(backend, call)
    if name not in _OPERATORS:
        return f"backend {name!r} runs them one after the other ({reason})"
    parameters = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(p is not None and p.device != call.x.device for p in parameters):
        return f"the input is on {call.x.device}, but the parameters of BatchNorm are not"
    if call.record.membrane:
        return "the membrane is recorded, which one operator does not store"
    if call.record.active:
        return "it is recorded where the surrogate is active"
    return "the input is empty" if not call.x.numel() else None


def _check(call: Call, norm: Norm, pool: str | None) -> None:
    x = call.x
    if x.dim() < 3:
        raise ValueError(f"BatchNorm needs an input [T, B, C, ...], got shape {list(x.shape)}")
    for name in ("weight", "bias", "running_mean", "running_var"):
        p = getattr(norm, name)
        if p is not None and p.shape != x.shape[2:3]:
            raise ValueError(
                f"{name} of BatchNorm must be [C] with C = {x.shape[2]}, got shape {list(p.shape)}"
            )
    if not norm.training and (norm.running_mean is None or norm.running_var is None):
        raise ValueError(
            "BatchNorm without running statistics needs training=True, to use those of its input"
        )
    if norm.training and _samples(call) == 1:
        raise ValueError(
            "BatchNorm needs more than one value per channel in training, got shape"
            f" {list(x.shape)}"
        )
    if pool not in POOLS:
        raise ValueError(f"pool must be None, 'avg' or 'max', got {pool!r}")
    if pool and (x.dim() != 5 or min(x.shape[3:]) < 2):
        raise ValueError(
            f"a 2x2 pool needs images of at least 2x2, [T, B, C, H, W], got shape {list(x.shape)}"
        )


def _samples(call: Call) -> int:
    """The number of values per channel, counting all repeated timesteps."""
    return call.repeats * call.x.shape[0] * call.x.shape[1] * math.prod(call.x.shape[3:])


def track_statistics(norm: Norm, n: int, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of n samples; variance is the biased one."""
    with torch.no_grad():
        for running, current in (
            (norm.running_mean, mean),
            (norm.running_var, variance * (n / (n - 1))),
        ):
            if running is not None:
                running.copy_(running.double().lerp(current, norm.momentum))


# ------------------------------------------------------------------------------- separate operators


def _separate(call: Call, norm: Norm, pool: str | None, backend: str) -> Result:
    y, dtype = call.x.flatten(0, 1), state_dtype(call.x)
    running = norm.running_mean, norm.running_var
    tracked = norm.running_mean is not None or norm.running_var is not None
    if call.repeats > 1 and norm.training:
        if tracked and y.numel():
            dims = [d for d in range(y.dim()) if d != 1]
            variance, mean = torch.var_mean(y.detach().double(), dims, correction=0)
            track_statistics(norm, _samples(call), mean, variance)
        running = None, None
    weight, bias = (None if p is None else p.to(dtype) for p in (norm.weight, norm.bias))
    # not F.batch_norm, which refuses a single value per channel even if it is repeated over T
    x = torch.batch_norm(
        y.to(dtype), weight, bias, *running, norm.training, norm.momentum, norm.eps, False
    )
    result = dispatch(backend, replace(call, x=x.unflatten(0, call.x.shape[:2])))
    spikes, moments = result.spikes.to(call.x.dtype), result.moments
    if moments is not None:
        result = result._replace(moments=moments._replace(rate=layout.firing_rate(spikes.detach())))
    return (
        result._replace(spikes=_pooled(spikes, pool), bits=None)
        if pool
        else result._replace(spikes=spikes)
    )


def _pooled(spikes: Tensor, pool: str) -> Tensor:
    pooled = avg_pool(spikes.flatten(0, 1)) if pool == "avg" else max_pool(spikes.flatten(0, 1))
    return pooled.unflatten(0, spikes.shape[:2])


# ------------------------------------------------------------------------------------- one operator


def _fused(
    name: str, call: Call, norm: Norm, pool: str | None, want_state: bool, add: Tensor | None = None
) -> Result:
    contiguous = call.x[0].is_contiguous() or layout.channels_last(call.x[0])
    if name == "triton" and not contiguous:  # its kernels support only these two layouts
        call = replace(call, x=call.x.contiguous())
    inputs = (*call.inputs, norm.weight, norm.bias, add)
    record = call.record
    bits = record.bits and add is None and writes_bits(name, call.x, pool)
    options = POOLS.index(pool), call.repeats, want_state, record.moments, bits
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in inputs):
        spikes, state, moments, rows, bits_written = _NormLIF.apply(
            _OPERATORS[name], call, norm, options, *inputs
        )
    else:
        spikes, state, moments, rows, bits_written = _forward(
            _OPERATORS[name], call, norm, options, add, ops.constants(call)
        )
    if norm.training:
        track_statistics(norm, _samples(call), rows[0], rows[1])
    collected = Moments(moments[0], moments[1], moments[2].detach()) if record.moments else None
    return Result(spikes, state, None, collected, None, bits_written if bits else None)


def writes_bits(name: str, y: Tensor, pool: str | None) -> bool:
    """Whether the kernel writes spikes as bits too: Triton does if 8 channels are adjacent."""
    return (
        name == "triton"
        and pool != "avg"
        and y.shape[2] % 8 == 0
        and layout.walk_strides(y[0])[1] == 1
    )


# pool, repeats, and whether the state, the moments and the bits are needed
_Options = tuple[int, int, bool, bool, bool]


def _forward(
    name: str, call: Call, norm: Norm, options: _Options, add: Tensor | None, constants: Tensor
) -> Forward:
    running = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    parameters = (norm.weight, norm.bias, *running)
    encoded = ops.encode(call)
    outputs: Forward = getattr(torch.ops.backspike, f"{name}_forward")(
        call.x, call.v0, *parameters, add, constants, *encoded, norm.eps, *options
    )
    return outputs


class _NormLIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        name: str,
        call: Call,
        norm: Norm,
        options: _Options,
        *inputs: float | Tensor | None,
    ) -> Forward:
        constants, add = ops.constants(call), as_tensor(inputs[-1])
        spikes, state, moments, rows, bits = _forward(name, call, norm, options, add, constants)
        tensors = map(as_tensor, inputs[2:-1])
        ctx.save_for_backward(call.x, call.v0, rows, constants, call.seed, call.p, *tensors)
        ctx.operators, ctx.encoded, ctx.moments = name, ops.encode(call), call.record.moments
        ctx.options = norm.training, *options[:3]
        ctx.mark_non_differentiable(rows, bits)
        ctx.set_materialize_grads(False)
        return spikes, state, moments, rows, bits

    @staticmethod
    def backward(
        ctx: Context, g: Tensor | None, g_v: Tensor | None, g_moments: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        y, v0, rows, constants, seed, p, *parameters = ctx.saved_tensors
        training, pool, repeats, has_state = ctx.options
        _, _, _, _, needs_y, needs_v0, *needs, needs_add = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs[:3]) if needed)
        line = (
            ops.moment_gradient(g_moments, y.shape, constants.dtype)
            if ctx.moments and g_moments is not None
            else None
        )
        g_v = g_v if has_state else None
        dy, g_v0, sums, gx_sums = getattr(torch.ops.backspike, f"{ctx.operators}_backward")(
            y, v0, rows, constants, seed, p, g, g_v, line,
            *ctx.encoded, training, pool, repeats, learns, needs_v0,
        )  # fmt: skip
        sums = [*sums, gx_sums[1] * rows[2], gx_sums[0]]
        grads = ops.learned_gradients(sums, parameters, needs)
        inputs = dy if needs_y else None, g_v0 if needs_v0 else None
        return None, None, None, None, *inputs, *grads, g if needs_add else None
