"""The complementary neuron in C: the two operators by which `kernel/clif.py` computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import layout, ops
from ..coefficients import state_dtype
from . import library

ops.library.define(
    "clif_forward(Tensor x, Tensor? v0, Tensor constants, int[] flags, float[] numbers, bool masked, bool[] records)"
    " -> Tensor[]"
)
ops.library.define(
    "clif_backward(Tensor? u, Tensor? x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p, Tensor? g, Tensor? g_state,"
    " Tensor? gu, Tensor? line, SymInt[] shape, SymInt[] strides, int[] flags, float[] numbers, int learns, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)"
)

_PASTS = 4  # of clif.c


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
    given: _ForwardInputs,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    x, records = given.x, given.records
    strides, dtype = layout.walk_strides(x[0], given.masked), state_dtype(x)
    return (
        layout.empty(x.shape, strides, x.dtype, x.device),
        layout.empty((2, *x.shape[1:]), strides, dtype, x.device),
        layout.empty(x.shape, strides, dtype, x.device) if records[0] else None,
        torch.zeros((2, len(x), layout.channels(x)), dtype=torch.float64, device=x.device)
        if records[1]
        else None,
    )


def _backward_outputs(given: _BackwardInputs) -> tuple[Tensor, Tensor, Tensor]:
    constants, shape, strides = given.constants, given.shape, given.strides
    return (
        layout.empty(shape, strides, given.dtype, constants.device),
        layout.empty((2, *shape[1:]), strides, constants.dtype, constants.device),
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=constants.device),
    )


def _forward(given: _ForwardInputs) -> list[Tensor]:
    if given.x.dtype == torch.float16:
        spikes, *others = _forward(given._replace(x=given.x.float()))
        return [spikes.half(), *others]
    outputs = spikes, state, u, sums = _forward_outputs(given)
    strides = spikes.stride()[1:]
    x, v0 = layout.with_strides(given.x, strides), _state(given.v0, strides)
    job = library.make_job(
        spikes.shape, given.constants, strides, given.flags, given.numbers, x.element_size()
    )
    job.x_stride = x.stride(0)
    partial = None if sums is None else torch.zeros(job.chunks, sums.numel(), dtype=torch.float64)
    library.set_pointers(job, x=x, v0=v0, s=spikes, u=u, v=state, partial=partial, sums=sums)
    library.call("clif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    return ops.present(outputs)


def _backward(given: _BackwardInputs) -> tuple[Tensor, Tensor, Tensor]:
    x, g, gu = given.x, given.g, given.gu
    if given.dtype == torch.float16:
        x, g = (None if a is None else a.float() for a in (x, g))
        wide = _backward(given._replace(x=x, g=g, dtype=torch.float32))
        return wide[0].half(), *wide[1:]
    shape, strides, constants, dtype = given.shape, given.strides, given.constants, given.dtype
    outputs = gx, g_v0, sums = _backward_outputs(given)
    x, g, gu = (layout.with_strides(a, strides) for a in (x, g, gu))
    v0, g_state = _state(given.v0, strides), _state(given.g_state, strides)
    job = library.make_job(shape, constants, strides, given.flags, given.numbers, dtype.itemsize)
    job.learns = given.learns
    job.keeps = ops.KEEPS.index("recompute" if given.u is None else "exact")
    library.set_mask(job, given.seed, given.p)
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if a is None else a.stride(0) for a in (x, g, gu)
    )
    partial = torch.zeros(job.chunks, sums.numel(), dtype=torch.float64) if given.learns else None
    scratch = torch.empty(
        (job.threads, _PASTS, job.T, library.function("lif_block")()), dtype=constants.dtype
    )
    library.set_pointers(
        job, x=x, v0=v0, u=given.u, g=g, gu=gu, gv=g_state, line=given.line, gx=gx, gv0=g_v0
    )
    library.set_pointers(job, scratch=scratch, partial=partial, sums=sums)
    library.call("clif_backward", dtype, job)
    return outputs


def _state(a: Tensor | None, strides: Sequence[int]) -> Tensor | None:
    """`[2, B, ...]` as the kernel takes it: two rows without a gap."""
    if a is None or (
        a.stride(0) == math.prod(a.shape[1:]) and layout.with_strides(a, strides) is a
    ):
        return a
    return layout.empty(a.shape, strides, a.dtype, a.device).copy_(a)


ops.implement(
    "clif_forward",
    "CPU",
    _ForwardInputs,
    _forward,
    lambda given: ops.present(_forward_outputs(given)),
)
ops.implement("clif_backward", "CPU", _BackwardInputs, _backward, _backward_outputs)
