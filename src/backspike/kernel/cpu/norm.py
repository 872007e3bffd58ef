"""BatchNorm and a neuron as one operator, in C."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .. import layout
from ..norm_ops import (
    CHANNEL_ROWS,
    Backward,
    BackwardInputs,
    Forward,
    ForwardInputs,
    backward_outputs,
    define,
    forward_outputs,
    spike_strides,
)
from . import library


class _Job(ctypes.Structure):
    """The struct Norm of norm.h, where the fields are documented."""

    _fields_ = [
        ("neuron", library.Job),
        *library.fields(ctypes.c_int64, "batch pool H W"),
        ("eps", ctypes.c_double),
        *library.fields(
            ctypes.c_void_p, "p_weight p_bias p_norm p_rows p_tables p_cache p_moved p_moments"
        ),
    ]


def _forward(a: ForwardInputs) -> Forward:
    if a.y.dtype == torch.float16:
        add = None if a.add is None else a.add.float()
        result = _forward(a._replace(y=a.y.float(), add=add))
        return result[0].half(), *result[1:]
    assert not a.bits  # see writes_bits
    outputs = spikes, state, sums, rows, _ = forward_outputs(a)
    strides = layout.walk_strides(a.y[0])
    y, v0 = layout.with_strides(a.y, strides), layout.step_with_strides(a.v0, strides)
    weight, bias = (
        None if p is None else p.to(state.dtype).contiguous() for p in (a.weight, a.bias)
    )
    job = _job(a, y, strides, rows)
    job.eps, neuron = a.eps, job.neuron
    if a.mean is None or a.variance is None:
        job.batch = 1
    else:
        rows[0], rows[1] = a.mean, a.variance
    partial = library.partial_sums(neuron, sums if a.moments else None)
    written = state if a.want_state else None
    library.set_pointers(neuron, v0=v0, s=spikes, v=written, partial=partial, sums=sums)
    library.set_pointers(job, weight=weight, bias=bias)
    _call("norm_forward", y.dtype, job)
    if a.moments:
        sums /= y[0].numel() // y.shape[2]
    if a.add is not None:
        spikes += a.add
    return outputs


def _backward(a: BackwardInputs) -> Backward:
    if a.y.dtype == torch.float16:
        g = None if a.g is None else a.g.float()
        result = _backward(a._replace(y=a.y.float(), g=g))
        return result[0].half(), *result[1:]
    outputs = dy, g_v0, sums, gx_sums = backward_outputs(a)
    strides = dy.stride()[1:]
    y = layout.with_strides(a.y, strides)
    g = layout.with_strides(a.g, spike_strides(a.y, strides, a.pool))
    v0, g_v = layout.step_with_strides(a.v0, strides), layout.step_with_strides(a.g_v, strides)
    job = _job(a, y, strides, a.rows)
    neuron = job.neuron
    neuron.learns, job.batch = a.learns, a.training
    library.set_mask(neuron, a.seed, a.p)
    neuron.g_stride = 0 if g is None else g.stride(0)
    partial = library.partial_sums(neuron, sums if a.learns else None)
    gv0 = g_v0 if a.needs_v0 else None
    library.set_pointers(neuron, v0=v0, g=g, gv=g_v, line=a.line, gx=dy, gv0=gv0)
    library.set_pointers(neuron, partial=partial, sums=sums)
    library.set_pointers(job, moments=gx_sums)
    _call("norm_backward", y.dtype, job)
    return outputs


def _job(
    a: ForwardInputs | BackwardInputs, y: Tensor, strides: tuple[int, ...], rows: Tensor
) -> _Job:
    """The job with all that both directions need, including its workspace."""
    T, C, constants = y.shape[0] * a.repeats, y.shape[2], a.constants
    neuron = library.make_job(
        (T, *y.shape[1:]), constants, strides, a.flags, a.numbers, y.element_size()
    )
    neuron.repeated, neuron.x_stride = a.repeats > 1, y.stride(0) if a.repeats == 1 else 0
    library.set_pointers(neuron, x=y)
    job = _Job(neuron=neuron, pool=a.pool)
    if a.pool:
        job.H, job.W = y.shape[3:]
    parts = library.function("norm_splits")(ctypes.byref(job)) if neuron.inner == 1 else 0
    block = library.function("norm_block")()
    sizes = (CHANNEL_ROWS * C, CHANNEL_ROWS * parts * block, neuron.threads * T * block)
    workspace = (
        *(torch.empty(n, dtype=constants.dtype, device="cpu") for n in sizes),
        torch.zeros(neuron.chunks * 2 * C, dtype=torch.float64, device="cpu"),
    )
    job.workspace = workspace  # lives as long as the job
    channel_rows, tables, cache, moved = workspace
    library.set_pointers(job, norm=rows, rows=channel_rows, tables=tables, cache=cache, moved=moved)
    return job


def _call(name: str, dtype: torch.dtype, job: _Job) -> None:
    library.function(name, dtype)(ctypes.byref(job))


define("norm_lif", "CPU", _forward, _backward)
