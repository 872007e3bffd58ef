"""BatchNorm and the neuron as one operator, in C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import layout, ops
from ..norm_ops import CHANNEL_ROWS, backward_outputs, forward_outputs, spike_strides
from . import library


class _Job(ctypes.Structure):
    """The struct Norm of norm.h, which says what the fields mean."""

    _fields_ = [
        ("neuron", library.Job),
        *library.fields(ctypes.c_int64, "batch pool H W"),
        ("eps", ctypes.c_double),
        *library.fields(
            ctypes.c_void_p, "p_weight p_bias p_norm p_rows p_tables p_cache p_moved p_moments"
        ),
    ]


@torch.library.impl(ops.library, "norm_lif_forward", "CPU")
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
        given = (
            weight,
            bias,
            mean,
            variance,
            add,
            constants,
            flags,
            numbers,
            eps,
            pool,
            repeats,
            want_state,
            moments,
            bits,
        )
        spikes, *others = _norm_lif_forward(y.float(), v0, *given)
        return spikes.half(), *others
    assert not bits  # see writes_bits
    outputs = spikes, state, sums, rows, _ = forward_outputs(
        y, pool, repeats, want_state, moments, bits
    )
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
    library.set_pointers(
        job.neuron, v0=v0, s=spikes, v=state if want_state else None, partial=partial, sums=sums
    )
    library.set_pointers(job, weight=weight, bias=bias)
    _call("norm_forward", y.dtype, job)
    if moments:
        sums /= y[0].numel() // y.shape[2]
    if add is not None:
        spikes += add
    return outputs


@torch.library.impl(ops.library, "norm_lif_backward", "CPU")
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
        dy, *others = _norm_lif_backward(
            y.float(), v0, rows, constants, seed, p, g, g_v, line, *given
        )
        return dy.half(), *others
    outputs = dy, g_v0, sums, through = backward_outputs(y, constants, seed is not None, needs_v0)
    strides = dy.stride()[1:]
    y, g = layout.arranged(y, strides), layout.arranged(g, spike_strides(y, strides, pool))
    v0, g_v = layout.one(v0, strides), layout.one(g_v, strides)
    job = _job(y, constants, strides, flags, numbers, rows, pool, repeats)
    neuron = job.neuron
    neuron.learns, job.batch = learns, training
    library.set_mask(neuron, seed, p)
    neuron.g_stride = 0 if g is None else g.stride(0)
    partial = torch.zeros(neuron.chunks, sums.numel(), dtype=torch.float64) if learns else None
    library.set_pointers(
        neuron,
        v0=v0,
        g=g,
        gv=g_v,
        line=line,
        gx=dy,
        gv0=g_v0 if needs_v0 else None,
        partial=partial,
        sums=sums,
    )
    library.set_pointers(job, moments=through)
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
    neuron = library.make_job(
        (T, *y.shape[1:]), constants, strides, flags, numbers, y.element_size()
    )
    neuron.repeated, neuron.x_stride = repeats > 1, y.stride(0) if repeats == 1 else 0
    library.set_pointers(neuron, x=y)
    job: Any = _Job(neuron=neuron, pool=pool)
    if pool:
        job.H, job.W = y.shape[3:]
    parts, block = (
        library.function("norm_splits")(ctypes.byref(job)) if neuron.inner == 1 else 0,
        library.function("norm_block")(),
    )
    sizes = (CHANNEL_ROWS * C, CHANNEL_ROWS * parts * block, neuron.threads * T * block)
    space = (
        *(torch.empty(n, dtype=constants.dtype) for n in sizes),
        torch.zeros(neuron.chunks * 2 * C, dtype=torch.float64),
    )
    job.space = space  # lives as long as the job
    library.set_pointers(
        job, norm=rows, rows=space[0], tables=space[1], cache=space[2], moved=space[3]
    )
    return job


def _call(name: str, dtype: torch.dtype, job: _Job) -> None:
    library.function(name, dtype)(ctypes.byref(job))
