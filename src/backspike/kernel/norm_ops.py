"""What the implementations of `norm_lif` share: its operators' outputs, strides and shapes under torch.compile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import layout, ops
from .coefficients import state_dtype

POOLS = (None, "avg", "max")  # in the order of norm.h
CHANNEL_ROWS = 5  # of the constants of the channels: mean, variance, 1 / deviation, scale, shift


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
        torch.zeros((CHANNEL_ROWS, y.shape[2]), dtype=torch.float64, device=device),
        torch.empty(T * math.prod(step) // 8 if bits else 0, dtype=torch.uint8, device=device),
    )


def spike_strides(y: Tensor, strides: Sequence[int], pool: int) -> Sequence[int]:
    """Of a timestep; what is pooled lies as y does."""
    if not pool:
        return strides
    C, H, W = y.shape[2], y.shape[3] // 2, y.shape[4] // 2
    return (C * H * W, 1, C * W, C) if strides[1] == 1 else (C * H * W, H * W, W, 1)


def backward_outputs(
    y: Tensor, constants: Tensor, masked: bool, needs_v0: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    ops.library.define(
        f"{name}_forward(Tensor y, Tensor? v0, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, Tensor? add,"
        " Tensor constants, int[] flags, float[] numbers, float eps, int pool, SymInt repeats, bool want_state, bool moments,"
        " bool bits) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    ops.library.define(
        f"{name}_backward(Tensor y, Tensor? v0, Tensor rows, Tensor constants, Tensor? seed, Tensor? p, Tensor? g, Tensor? g_v,"
        " Tensor? line, int[] flags, float[] numbers, bool training, int pool, SymInt repeats, int learns, bool needs_v0)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    )
    torch.library.register_fake(f"backspike::{name}_forward", _foresee_forward, lib=ops.library)
    torch.library.register_fake(f"backspike::{name}_backward", _foresee_backward, lib=ops.library)


def _foresee_forward(
    y: Any, v0: Any, weight: Any, bias: Any, mean: Any, variance: Any, add: Any, *rest: Any
) -> Any:
    return forward_outputs(y, *rest[4:])


def _foresee_backward(y: Any, v0: Any, rows: Any, constants: Any, seed: Any, *rest: Any) -> Any:
    return backward_outputs(y, constants, seed is not None, rest[-1])
