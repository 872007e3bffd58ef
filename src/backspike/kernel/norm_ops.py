"""What the implementations of `norm_lif` share: signatures, and the layout of their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import layout, ops
from .coefficients import state_dtype

POOLS = (None, "avg", "max")  # in the order of norm.h
# constants of each channel: mean, variance, 1 / standard deviation, scale, shift
CHANNEL_ROWS = 5


class ForwardInputs(NamedTuple):
    """The arguments of a forward operator."""

    y: Tensor
    v0: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None  # the running mean; None: use the statistics of y
    variance: Tensor | None
    add: Tensor | None
    constants: Tensor
    flags: list[int]
    numbers: list[float]
    eps: float
    pool: int
    repeats: int
    want_state: bool
    moments: bool
    bits: bool


class BackwardInputs(NamedTuple):
    """The arguments of a backward operator."""

    y: Tensor
    v0: Tensor | None
    rows: Tensor
    constants: Tensor
    seed: Tensor | None
    p: Tensor | None
    g: Tensor | None
    g_v: Tensor | None
    line: Tensor | None
    flags: list[int]
    numbers: list[float]
    training: bool
    pool: int
    repeats: int
    learns: int
    needs_v0: bool


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # spikes, state, moments, rows, bits
Backward = tuple[Tensor, Tensor, Tensor, Tensor]  # dy, g_v0, sums, sums of gx and gx (y - mean)


def forward_outputs(a: ForwardInputs) -> Forward:
    """Allocate the outputs of a forward operator."""
    y, pool = a.y, a.pool
    strides, device, T = layout.walk_strides(y[0]), y.device, y.shape[0] * a.repeats
    step = (*y.shape[1:3], y.shape[3] // 2, y.shape[4] // 2) if pool else y.shape[1:]
    state = (y.shape[1:], strides) if a.want_state else ((0,), (1,))
    return (
        layout.empty((T, *step), spike_strides(y, strides, pool), y.dtype, device),
        torch.empty_strided(*state, dtype=state_dtype(y), device=device),
        torch.zeros((3, T, y.shape[2]) if a.moments else (0,), dtype=torch.float64, device=device),
        torch.zeros((CHANNEL_ROWS, y.shape[2]), dtype=torch.float64, device=device),
        torch.empty(T * math.prod(step) // 8 if a.bits else 0, dtype=torch.uint8, device=device),
    )


def spike_strides(y: Tensor, strides: Sequence[int], pool: int) -> Sequence[int]:
    """The strides of a timestep of the spikes; pooled spikes get the memory layout of y."""
    if not pool:
        return strides
    C, H, W = y.shape[2], y.shape[3] // 2, y.shape[4] // 2
    return (C * H * W, 1, C * W, C) if strides[1] == 1 else (C * H * W, H * W, W, 1)


def backward_outputs(a: BackwardInputs) -> Backward:
    """Allocate the outputs of a backward operator."""
    y, strides, device = a.y, layout.walk_strides(a.y[0], a.seed is not None), a.y.device
    state = (y.shape[1:], strides) if a.needs_v0 else ((0,), (1,))
    return (
        layout.empty(y.shape, strides, y.dtype, device),
        torch.empty_strided(*state, dtype=state_dtype(y), device=device),
        torch.zeros((3, a.constants.shape[1]), dtype=torch.float64, device=device),
        torch.zeros((2, y.shape[2]), dtype=torch.float64, device=device),
    )


def define(
    name: str,
    key: str,
    forward: Callable[[ForwardInputs], Forward],
    backward: Callable[[BackwardInputs], Backward],
) -> None:
    """Define the operators `name_forward` and `name_backward` for the devices of this key."""
    ops.library.define(
        f"{name}_forward(Tensor y, Tensor? v0, Tensor? weight, Tensor? bias, Tensor? mean,"
        " Tensor? variance, Tensor? add, Tensor constants, int[] flags, float[] numbers, float eps,"
        " int pool, SymInt repeats, bool want_state, bool moments, bool bits)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    ops.library.define(
        f"{name}_backward(Tensor y, Tensor? v0, Tensor rows, Tensor constants, Tensor? seed,"
        " Tensor? p, Tensor? g, Tensor? g_v, Tensor? line, int[] flags, float[] numbers,"
        " bool training, int pool, SymInt repeats, int learns, bool needs_v0)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    )
    ops.implement(f"{name}_forward", key, ForwardInputs, forward, forward_outputs)
    ops.implement(f"{name}_backward", key, BackwardInputs, backward, backward_outputs)
