"""The complementary LIF neuron in C: the two operators that `kernel/clif.py` calls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import layout, ops
from ..coefficients import state_dtype
from . import library

ops.library.define(
    "clif_forward(Tensor x, Tensor? v0, Tensor constants, int[] flags, float[] numbers,"
    " bool masked, bool[] records) -> Tensor[]"
)
ops.library.define(
    "clif_backward(Tensor? u, Tensor? x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p,"
    " Tensor? g, Tensor? g_state, Tensor? gu, Tensor? line, SymInt[] shape, SymInt[] strides,"
    " int[] flags, float[] numbers, int learns, ScalarType dtype) -> (Tensor, Tensor, Tensor)"
)

_PASTS = 4  # rows of scratch memory per timestep, as in clif.c


class _ForwardInputs(NamedTuple):
    x: Tensor
    v0: Tensor | None
    constants: Tensor
    flags: list[int]
    numbers: list[float]
    masked: bool
    records: list[bool]


class _BackwardInputs(NamedTuple):
    u: Tensor | None
    x: Tensor | None
    v0: Tensor | None
    constants: Tensor
    seed: Tensor | None
    p: Tensor | None
    g: Tensor | None
    g_state: Tensor | None
    gu: Tensor | None
    line: Tensor | None
    shape: list[int]
    strides: list[int]
    flags: list[int]
    numbers: list[float]
    learns: int
    dtype: torch.dtype


def _forward_outputs(
    inputs: _ForwardInputs,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, records = inputs.x, inputs.records
    strides, dtype = layout.walk_strides(x[0], inputs.masked), state_dtype(x)
    return (
        layout.empty(x.shape, strides, x.dtype, x.device),
        layout.empty((2, *x.shape[1:]), strides, dtype, x.device),
        layout.empty(x.shape, strides, dtype, x.device) if records[0] else None,
        torch.zeros((2, len(x), layout.channels(x)), dtype=torch.float64, device=x.device)
        if records[1]
        else None,
    )


def _backward_outputs(inputs: _BackwardInputs) -> tuple[Tensor, Tensor, Tensor]:
    constants, shape, strides = inputs.constants, inputs.shape, inputs.strides
    return (
        layout.empty(shape, strides, inputs.dtype, constants.device),
        layout.empty((2, *shape[1:]), strides, constants.dtype, constants.device),
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=constants.device),
    )


def _forward(inputs: _ForwardInputs) -> list[Tensor]:
    if inputs.x.dtype == torch.float16:
        spikes, *others = _forward(inputs._replace(x=inputs.x.float()))
        return [spikes.half(), *others]
    outputs = spikes, state, u, sums = _forward_outputs(inputs)
    strides = spikes.stride()[1:]
    x, v0 = layout.with_strides(inputs.x, strides), layout.state_with_strides(inputs.v0, strides)
    job = library.make_job(
        spikes.shape, inputs.constants, strides, inputs.flags, inputs.numbers, x.element_size()
    )
    job.x_stride = x.stride(0)
    partial = library.partial_sums(job, sums)
    library.set_pointers(job, x=x, v0=v0, s=spikes, u=u, v=state, partial=partial, sums=sums)
    library.call("clif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    return ops.present(outputs)


def _backward(inputs: _BackwardInputs) -> tuple[Tensor, Tensor, Tensor]:
    x, g, gu = inputs.x, inputs.g, inputs.gu
    if inputs.dtype == torch.float16:
        x, g = (None if a is None else a.float() for a in (x, g))
        wide = _backward(inputs._replace(x=x, g=g, dtype=torch.float32))
        return wide[0].half(), *wide[1:]
    shape, strides, constants, dtype = inputs.shape, inputs.strides, inputs.constants, inputs.dtype
    outputs = gx, g_v0, sums = _backward_outputs(inputs)
    x, g, gu = (layout.with_strides(a, strides) for a in (x, g, gu))
    v0, g_state = (
        layout.state_with_strides(inputs.v0, strides),
        layout.state_with_strides(inputs.g_state, strides),
    )
    job = library.make_job(shape, constants, strides, inputs.flags, inputs.numbers, dtype.itemsize)
    job.learns = inputs.learns
    job.keeps = ops.SAVED_FORMS.index("recompute" if inputs.u is None else "exact")
    library.set_mask(job, inputs.seed, inputs.p)
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if a is None else a.stride(0) for a in (x, g, gu)
    )
    partial = library.partial_sums(job, sums if inputs.learns else None)
    scratch = torch.empty(
        (job.threads, _PASTS, job.T, library.function("lif_block")()),
        dtype=constants.dtype,
        device="cpu",
    )
    library.set_pointers(
        job, x=x, v0=v0, u=inputs.u, g=g, gu=gu, gv=g_state, line=inputs.line, gx=gx, gv0=g_v0
    )
    library.set_pointers(job, scratch=scratch, partial=partial, sums=sums)
    library.call("clif_backward", dtype, job)
    return outputs


ops.implement(
    "clif_forward",
    "CPU",
    _ForwardInputs,
    _forward,
    lambda inputs: ops.present(_forward_outputs(inputs)),
)
ops.implement("clif_backward", "CPU", _BackwardInputs, _backward, _backward_outputs)
