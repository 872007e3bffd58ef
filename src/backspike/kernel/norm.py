"""BatchNorm and the neuron, with a 2x2 pool of the spikes or an addition to them, as one operator: `norm_lif`.

Where a compiled kernel can do it (norm.c on the CPU, triton_norm.py on a GPU), the normalised current and the membrane are
never in memory: for backward only the input, the constants of the channels and the seed are kept. Everywhere else the parts
run one after the other, torch's batch_norm, the neuron's backend, the pool.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import Call, Moments, Result, choose, cpu, dispatch, layout, operators
from .constants import state_dtype
from .pool import avg_pool, max_pool

POOLS = (None, "avg", "max")  # in the order of the numbers in norm.c
_OPERATORS = {"cpu": "norm_lif", "triton": "triton_norm_lif"}
_ROWS = 5  # of the constants of the channels: mean, variance, 1 / deviation, scale, shift


@dataclass(frozen=True, eq=False)
class Norm:
    """What torch's BatchNorm does to `[T, B, C, ...]` with T folded into the batch.

    training: normalise by the statistics of the input over T, batch and space, and move the running ones, where there are
    any, by the share `momentum` towards them. Else the running ones normalise.
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
    """BatchNorm, then the neuron of `call`, whose x is what BatchNorm gets, `[T, B, C, ...]`, then a pool of the spikes.

    pool: None, "avg" or "max": windows of 2x2, stride 2, an odd last row or column left out. add: something in the shape of
    the spikes to be added to them, without a pool. Where x stands for `call.repeats` equal timesteps its gradient comes summed
    over them, and the running variance is that of all of them.
    The normalised current has the dtype of the state, so it is not rounded to 16 bits. Where `refuses` returns None, x, five
    numbers per channel and the seed are kept for backward, whatever the neuron's `memory`; else what the parts keep.
    want_state=False spares writing the state, which may then come out empty. Raises ValueError naming the argument.
    """
    _check(call, norm, pool)
    if add is not None and (pool or list(add.shape) != [call.x.shape[0] * call.repeats, *call.x.shape[1:]]):
        raise ValueError(f"add must have the shape of the spikes, without a pool, got shape {list(add.shape)}")
    name = choose(backend, call)[0]
    if refuses(call, norm, backend):
        result = _composed(call, norm, pool, backend)
    elif pool and name == "cpu" and not layout.channels_last(call.x[0]):
        result = _fused(name, call, norm, None, want_state)
        result = result._replace(spikes=_pooled(result.spikes, pool))
    elif add is not None and add.dtype == call.x.dtype:
        return _fused(name, call, norm, pool, want_state, add)
    else:
        result = _fused(name, call, norm, pool, want_state)
    return result if add is None else result._replace(spikes=result.spikes + add, bits=None)


def refuses(call: Call, norm: Norm, backend: str = "auto") -> str | None:
    """Why the parts run one after the other; None where they are one."""
    name, why = choose(backend, call)
    if name not in _OPERATORS:
        return f"backend {name!r} runs them one after the other ({why})"
    parameters = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if any(p is not None and p.device != call.x.device for p in parameters):
        return f"the input is on {call.x.device}, and the parameters of BatchNorm are not"
    if call.rule.record_membrane:
        return "the membrane is recorded, which one operator does not keep"
    if call.rule.record_active:
        return "where the surrogate is active is recorded"
    return "the input is empty" if not call.x.numel() else None


def _check(call: Call, norm: Norm, pool: str | None) -> None:
    x = call.x
    if x.dim() < 3:
        raise ValueError(f"BatchNorm needs an input [T, B, C, ...], got shape {list(x.shape)}")
    for name in ("weight", "bias", "running_mean", "running_var"):
        p = getattr(norm, name)
        if p is not None and p.shape != x.shape[2:3]:
            raise ValueError(f"{name} of BatchNorm must be [C] with C = {x.shape[2]}, got shape {list(p.shape)}")
    if not norm.training and (norm.running_mean is None or norm.running_var is None):
        raise ValueError("BatchNorm without running statistics normalises by its input's: training must be True")
    if norm.training and _samples(call) == 1:
        raise ValueError(f"BatchNorm needs more than one value per channel in training, got shape {list(x.shape)}")
    if pool not in POOLS:
        raise ValueError(f"pool must be None, 'avg' or 'max', got {pool!r}")
    if pool and (x.dim() != 5 or min(x.shape[3:]) < 2):
        raise ValueError(f"a 2x2 pool needs images of at least 2x2, [T, B, C, H, W], got shape {list(x.shape)}")


def _samples(call: Call) -> int:
    """Values of a channel, those of equal timesteps counted."""
    return call.repeats * call.x.shape[0] * call.x.shape[1] * math.prod(call.x.shape[3:])


def _track(norm: Norm, n: int, mean: Tensor, variance: Tensor) -> None:
    """Moves the running statistics towards those of n samples; variance: the biased one."""
    with torch.no_grad():
        for running, now in ((norm.running_mean, mean), (norm.running_var, variance * (n / (n - 1)))):
            if running is not None:
                running.copy_(running.double().lerp(now, norm.momentum))


# -------------------------------------------------------------------------------------------------- one after the other


def _composed(call: Call, norm: Norm, pool: str | None, backend: str) -> Result:
    y, dtype = call.x.flatten(0, 1), state_dtype(call.x)
    running, tracked = (norm.running_mean, norm.running_var), norm.running_mean is not None or norm.running_var is not None
    if call.repeats > 1 and norm.training:
        if tracked and y.numel():
            dims = [d for d in range(y.dim()) if d != 1]
            variance, mean = torch.var_mean(y.detach().double(), dims, correction=0)
            _track(norm, _samples(call), mean, variance)
        running = None, None
    weight, bias = (None if p is None else p.to(dtype) for p in (norm.weight, norm.bias))
    # not F.batch_norm: it would refuse the one value per channel that repeats over T
    x = torch.batch_norm(y.to(dtype), weight, bias, *running, norm.training, norm.momentum, norm.eps, False)
    result = dispatch(backend, replace(call, x=x.unflatten(0, call.x.shape[:2])))
    spikes = result.spikes.to(call.x.dtype)
    return result._replace(spikes=_pooled(spikes, pool), bits=None) if pool else result._replace(spikes=spikes)


def _pooled(spikes: Tensor, pool: str) -> Tensor:
    pooled = avg_pool(spikes.flatten(0, 1)) if pool == "avg" else max_pool(spikes.flatten(0, 1))
    return pooled.unflatten(0, spikes.shape[:2])


# --------------------------------------------------------------------------------------------------------------- as one


def _fused(name: str, call: Call, norm: Norm, pool: str | None, want_state: bool, add: Tensor | None = None) -> Result:
    if name == "triton":
        from . import triton_norm  # noqa: F401  (defines the operators)

        if not call.x[0].is_contiguous() and not layout.channels_last(call.x[0]):  # it walks in these two orders alone
            call = replace(call, x=call.x.contiguous())
    learned = (call.x, call.v0, call.tau, call.theta, call.width, norm.weight, norm.bias, add)
    bits = call.rule.record_bits and add is None and writes_bits(name, call.x, pool)
    options = POOLS.index(pool), call.repeats, want_state, call.rule.record_moments, bits
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in learned):
        spikes, state, moments, rows, written = _NormLIF.apply(_OPERATORS[name], call, norm, options, *learned)
    else:
        spikes, state, moments, rows, written = _forward(_OPERATORS[name], call, norm, options, add, operators.constants(call))
    if norm.training:
        _track(norm, _samples(call), rows[0], rows[1])
    return Result(spikes, state, None, Moments(*moments) if call.rule.record_moments else None, None, written if bits else None)


def writes_bits(name: str, y: Tensor, pool: str | None) -> bool:
    """Whether spikes are written as bits too: by Triton, where eight channels lie side by side."""
    return name == "triton" and pool != "avg" and y.shape[2] % 8 == 0 and layout.order(y[0])[1] == 1


_Options = tuple[int, int, bool, bool, bool]  # pool, repeats, and what is wanted: the state, moments, bits


def _forward(name: str, call: Call, norm: Norm, options: _Options, add: Tensor | None, constants: Tensor) -> Any:
    running = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    parameters = (norm.weight, norm.bias, *running)
    rule = operators.encode(call)
    return getattr(torch.ops.backspike, f"{name}_forward")(
        call.x, call.v0, *parameters, add, constants, *rule, norm.eps, *options
    )


class _NormLIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, call: Call, norm: Norm, options: _Options, *learned: Any) -> Any:
        constants, add = operators.constants(call), learned[-1]
        spikes, state, moments, rows, bits = _forward(name, call, norm, options, add, constants)
        tensors = [p if isinstance(p, Tensor) else None for p in learned[2:-1]]
        ctx.save_for_backward(call.x, call.v0, rows, constants, call.seed, call.p, *tensors)
        ctx.name, ctx.rule, ctx.moments = name, operators.encode(call), call.rule.record_moments
        ctx.choices = norm.training, *options[:3]
        ctx.mark_non_differentiable(rows, bits)
        ctx.set_materialize_grads(False)
        return spikes, state, moments, rows, bits

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_v: Tensor | None, g_moments: Tensor | None, *_: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("backspike: double backward through a spiking layer is not defined; use create_graph=False")
        y, v0, rows, constants, seed, p, *parameters = ctx.saved_tensors
        training, pool, repeats, has_state = ctx.choices
        _, _, _, _, needs_y, needs_v0, *needs, needs_add = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs[:3]) if needed)
        line = operators.line(g_moments, y.shape, constants.dtype) if ctx.moments and g_moments is not None else None
        g_v = g_v if has_state else None
        dy, g_v0, sums, through = getattr(torch.ops.backspike, f"{ctx.name}_backward")(
            y, v0, rows, constants, seed, p, g, g_v, line, *ctx.rule, training, pool, repeats, learns, needs_v0
        )
        neuron = zip([*sums, through[1] * rows[2], through[0]], parameters, needs)
        grads = [operators.reduced(row, parameter) if needed else None for row, parameter, needed in neuron]
        if needs[0]:
            grads[0] = operators.reduced(sums[0] / parameters[0].double() ** 2, parameters[0])
        return None, None, None, None, dy if needs_y else None, g_v0 if needs_v0 else None, *grads, g if needs_add else None


# ------------------------------------------------------------------------------------------------------- the operators


class _Job(ctypes.Structure):
    """The struct Norm of norm.c, which says what the fields mean."""

    _fields_ = [
        ("neuron", cpu._Job),
        *cpu._fields(ctypes.c_int64, "batch pool H W"),
        ("eps", ctypes.c_double),
        *cpu._fields(ctypes.c_void_p, "p_weight p_bias p_norm p_rows p_tables p_cache p_moved p_moments"),
    ]


def forward_outputs(
    y: Tensor, pool: int, repeats: int, want_state: bool, moments: bool, bits: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    strides, device, T = layout.order(y[0]), y.device, y.shape[0] * repeats
    step = (*y.shape[1:3], y.shape[3] // 2, y.shape[4] // 2) if pool else y.shape[1:]
    state = (y.shape[1:], strides) if want_state else ((0,), (1,))
    return (
        layout.empty((T, *step), spike_strides(y, strides, pool), y.dtype, device),
        torch.empty_strided(*state, dtype=state_dtype(y), device=device),
        torch.zeros((2, T, y.shape[2]) if moments else (0,), dtype=torch.float64, device=device),
        torch.zeros((_ROWS, y.shape[2]), dtype=torch.float64, device=device),
        torch.empty(T * math.prod(step) // 8 if bits else 0, dtype=torch.uint8, device=device),
    )


def spike_strides(y: Tensor, strides: Sequence[int], pool: int) -> Sequence[int]:
    """Of a timestep; what is pooled lies as y does."""
    if not pool:
        return strides
    C, H, W = y.shape[2], y.shape[3] // 2, y.shape[4] // 2
    return (C * H * W, 1, C * W, C) if strides[1] == 1 else (C * H * W, H * W, W, 1)


def backward_outputs(y: Tensor, constants: Tensor, masked: bool, needs_v0: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    strides, device = layout.order(y[0], masked), y.device
    state = (y.shape[1:], strides) if needs_v0 else ((0,), (1,))
    return (
        layout.empty(y.shape, strides, y.dtype, device),
        torch.empty_strided(*state, dtype=state_dtype(y), device=device),
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=device),
        torch.zeros((2, y.shape[2]), dtype=torch.float64, device=device),
    )


def define(name: str) -> None:
    """A pair of operators, `name_forward` and `name_backward`, whose results torch.compile can foresee."""
    operators.library.define(
        f"{name}_forward(Tensor y, Tensor? v0, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, Tensor? add,"
        " Tensor constants, int[] flags, float[] numbers, float eps, int pool, SymInt repeats, bool want_state, bool moments,"
        " bool bits) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    operators.library.define(
        f"{name}_backward(Tensor y, Tensor? v0, Tensor rows, Tensor constants, Tensor? seed, Tensor? p, Tensor? g, Tensor? g_v,"
        " Tensor? line, int[] flags, float[] numbers, bool training, int pool, SymInt repeats, int learns, bool needs_v0)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    )
    torch.library.register_fake(f"backspike::{name}_forward", _foresee_forward, lib=operators.library)
    torch.library.register_fake(f"backspike::{name}_backward", _foresee_backward, lib=operators.library)


def _foresee_forward(y: Any, v0: Any, weight: Any, bias: Any, mean: Any, variance: Any, add: Any, *rest: Any) -> Any:
    return forward_outputs(y, *rest[4:])


def _foresee_backward(y: Any, v0: Any, rows: Any, constants: Any, seed: Any, *rest: Any) -> Any:
    return backward_outputs(y, constants, seed is not None, rest[-1])


# ------------------------------------------------------------------------------------------------------- in C

define("norm_lif")


@torch.library.impl(operators.library, "norm_lif_forward", "CPU")
def _norm_lif_forward(
    y: Any,
    v0: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    add: Any,
    constants: Any,
    flags: Any,
    numbers: Any,
    eps: float,
    pool: int,
    repeats: int,
    want_state: bool,
    moments: bool,
    bits: bool,
) -> Any:
    if y.dtype == torch.float16:
        add = None if add is None else add.float()
        given = (weight, bias, mean, variance, add, constants, flags, numbers, eps, pool, repeats, want_state, moments, bits)
        spikes, *others = _norm_lif_forward(y.float(), v0, *given)
        return spikes.half(), *others
    assert not bits  # see writes_bits
    outputs = spikes, state, sums, rows, _ = forward_outputs(y, pool, repeats, want_state, moments, bits)
    strides = layout.order(y[0])
    y, v0 = layout.arranged(y, strides), layout.one(v0, strides)
    weight, bias = (None if p is None else p.to(state.dtype).contiguous() for p in (weight, bias))
    job = _job(y, constants, strides, flags, numbers, rows, pool, repeats)
    job.eps = eps
    if mean is None:
        job.batch = 1
    else:
        rows[0], rows[1] = mean, variance
    partial = torch.zeros(job.neuron.chunks, sums.numel(), dtype=torch.float64) if moments else None
    cpu._set(job.neuron, v0=v0, s=spikes, v=state if want_state else None, partial=partial, sums=sums)
    cpu._set(job, weight=weight, bias=bias)
    _call("norm_forward", y.dtype, job)
    if moments:
        sums /= y[0].numel() // y.shape[2]
    if add is not None:
        spikes += add
    return outputs


@torch.library.impl(operators.library, "norm_lif_backward", "CPU")
def _norm_lif_backward(
    y: Any,
    v0: Any,
    rows: Any,
    constants: Any,
    seed: Any,
    p: Any,
    g: Any,
    g_v: Any,
    line: Any,
    flags: Any,
    numbers: Any,
    training: bool,
    pool: int,
    repeats: int,
    learns: int,
    needs_v0: bool,
) -> Any:
    if y.dtype == torch.float16:
        given = (flags, numbers, training, pool, repeats, learns, needs_v0)
        g = None if g is None else g.float()
        dy, *others = _norm_lif_backward(y.float(), v0, rows, constants, seed, p, g, g_v, line, *given)
        return dy.half(), *others
    outputs = dy, g_v0, sums, through = backward_outputs(y, constants, seed is not None, needs_v0)
    strides = dy.stride()[1:]
    y, g = layout.arranged(y, strides), layout.arranged(g, spike_strides(y, strides, pool))
    v0, g_v = layout.one(v0, strides), layout.one(g_v, strides)
    job = _job(y, constants, strides, flags, numbers, rows, pool, repeats)
    neuron = job.neuron
    neuron.learns, job.batch = learns, training
    cpu._mask(neuron, seed, p)
    neuron.g_stride = 0 if g is None else g.stride(0)
    partial = torch.zeros(neuron.chunks, sums.numel(), dtype=torch.float64) if learns else None
    cpu._set(neuron, v0=v0, g=g, gv=g_v, line=line, gx=dy, gv0=g_v0 if needs_v0 else None, partial=partial, sums=sums)
    cpu._set(job, moments=through)
    _call("norm_backward", y.dtype, job)
    return outputs


def _job(
    y: Tensor,
    constants: Tensor,
    strides: tuple[int, ...],
    flags: Sequence[int],
    numbers: Sequence[float],
    rows: Tensor,
    pool: int,
    repeats: int,
) -> Any:
    """What both directions need, a `_Job` with its work space."""
    T, C = y.shape[0] * repeats, y.shape[2]
    neuron = cpu._job((T, *y.shape[1:]), constants, strides, flags, numbers, y.element_size())
    neuron.repeated, neuron.x_stride = repeats > 1, y.stride(0) if repeats == 1 else 0
    cpu._set(neuron, x=y)
    job: Any = _Job(neuron=neuron, pool=pool)
    if pool:
        job.H, job.W = y.shape[3:]
    c: Any = cpu._c
    parts, block = c.norm_splits(ctypes.byref(job)) if neuron.inner == 1 else 0, c.norm_block()
    sizes = (_ROWS * C, _ROWS * parts * block, neuron.threads * T * block)
    space = *(torch.empty(n, dtype=constants.dtype) for n in sizes), torch.zeros(neuron.chunks * 2 * C, dtype=torch.float64)
    job.space = space  # lives as long as the job
    cpu._set(job, norm=rows, rows=space[0], tables=space[1], cache=space[2], moved=space[3])
    return job


def _call(name: str, dtype: torch.dtype, job: _Job) -> None:
    getattr(cpu._c, f"{name}_{cpu._SUFFIX[dtype]}")(ctypes.byref(job))
