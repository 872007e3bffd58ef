"""The operators that launch the kernels of norm_kernels.py."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout, norm_ops
from . import lif
from .norm_kernels import (
    MEAN,
    VARIANCE,
    affine_kernel,
    norm_lif_bwd_kernel,
    norm_lif_fwd_kernel,
    statistics_kernel,
)

_TILE = 1024  # elements that a program processes at a time
_RESIDENT = 4  # programs per multiprocessor; each sums and recomputes over several tiles


class Grid(lif.Grid):
    """A grid of tiles of channels and positions or, with a pool, windows."""

    def __init__(self, y: Tensor, strides: Sequence[int], repeats: int, pool: int) -> None:
        super().__init__((y.shape[0] * repeats, *y.shape[1:]), strides, tiled=False)
        self.steps = y.shape[0]
        self.M = self.N // self.C  # positions per channel
        area = self.area
        self.H, self.W = y.shape[3:] if pool else (1, area)
        self.inner = 1 if strides[1] == 1 or area == 1 else area
        self.pooled_inner = 1 if self.inner == 1 else self.H // 2 * (self.W // 2)
        self.columns = min(triton.next_power_of_2(self.C), 64) if self.inner == 1 else 1
        members = 4 if pool else 1
        self.rows = _TILE // (self.columns * members)
        positions = self.M // area * -(-self.H // 2) * -(-self.W // 2) if pool else self.M
        self.across = triton.cdiv(self.C, self.columns)
        self.blocks = triton.cdiv(positions, self.rows)
        self.splits = max(1, min(self.blocks, _programs(y.device) // self.across))
        self.programs = self.across * self.splits
        self.tile = self.rows * members * self.columns

    def replace(self, **changes: int) -> Grid:
        """A copy with these attributes changed."""
        changed = copy(self)
        vars(changed).update(changes)
        return changed

    def sizes(self) -> dict[str, int]:
        """The sizes that all kernels take."""
        return {"M": self.M, "C": self.C, "H": self.H, "W": self.W, "inner": self.inner}


@lru_cache
def _programs(device: torch.device) -> int:
    count = (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )
    return _RESIDENT * count


def _forward(a: norm_ops.ForwardInputs) -> norm_ops.Forward:
    outputs = spikes, state, sums, rows, bits = norm_ops.forward_outputs(a)
    strides = layout.walk_strides(a.y[0])
    y, v0 = layout.with_strides(a.y, strides), layout.step_with_strides(a.v0, strides)
    add = layout.with_strides(a.add, strides)
    grid = Grid(y, strides, a.repeats, a.pool)
    shared_arguments = lif.kernel_arguments(grid, y.device, a)
    workspace = y.new_empty(grid.splits, 2, grid.C, dtype=torch.float64)
    guess = None
    dtype = tl.float64 if state.dtype == torch.float64 else tl.float32
    if a.mean is None or a.variance is None:
        guess = torch.empty(grid.C, dtype=state.dtype, device=y.device)
        lif.launch(
            statistics_kernel, grid.replace(rows=_TILE // grid.columns),
            p_y=y, p_guess=guess, p_partial=workspace, steps=grid.steps, **grid.sizes(),
            y_stride=y.stride(0), splits=grid.splits, dtype=dtype,
        )  # fmt: skip
    else:
        rows[MEAN.value], rows[VARIANCE.value] = a.mean, a.variance
    weight, bias = (None if p is None else p.contiguous() for p in (a.weight, a.bias))
    lif.launch(
        affine_kernel, grid.replace(programs=triton.cdiv(grid.C, 16), rows=64, columns=16),
        p_guess=guess, p_partial=workspace, p_weight=weight, p_bias=bias, p_rows=rows,
        n=grid.steps * grid.M, C=grid.C, splits=grid.splits,
        eps=lif.on_device((a.eps,), torch.float64, y.device), dtype=dtype,
    )  # fmt: skip
    partial = y.new_empty((grid.blocks, *sums.shape), dtype=torch.float64) if a.moments else None
    shared = ("p_constants", "p_numbers", "SOFT", "PER_CHANNEL")
    lif.launch(
        norm_lif_fwd_kernel, grid.replace(programs=grid.across * grid.blocks),
        **{name: shared_arguments[name] for name in shared},
        p_rows=rows, p_y=y, p_v0=v0, p_add=add, p_s=spikes, p_bits=bits if a.bits else None,
        p_v=state if a.want_state else None, p_partial=partial, T=grid.T, N=grid.N, **grid.sizes(),
        pooled_inner=grid.pooled_inner, y_stride=y.stride(0) if a.repeats == 1 else 0,
        add_stride=0 if add is None else add.stride(0), s_stride=spikes.stride(0),
        POOL=norm_ops.POOLS[a.pool],
    )  # fmt: skip
    if partial is not None:
        torch.sum(partial, 0, out=sums).div_(grid.M)
    return outputs


def _backward(a: norm_ops.BackwardInputs) -> norm_ops.Backward:
    outputs = dy, g_v0, sums, gx_sums = norm_ops.backward_outputs(a)
    strides, constants = dy.stride()[1:], a.constants
    y = layout.with_strides(a.y, strides)
    g = layout.with_strides(a.g, norm_ops.spike_strides(y, strides, a.pool))
    v0, g_v = layout.step_with_strides(a.v0, strides), layout.step_with_strides(a.g_v, strides)
    grid = Grid(y, strides, a.repeats, a.pool)
    shared_arguments = lif.kernel_arguments(grid, y.device, a, seed=a.seed, p=a.p)
    for name in ("N", "C", "inner", "area", "CHANNELS_LAST"):
        del shared_arguments[name]
    workspace = torch.empty(
        grid.programs, grid.T, grid.tile, dtype=constants.dtype, device=y.device
    )
    moved = y.new_empty(grid.splits, 2, grid.C, dtype=torch.float64)
    partial = y.new_empty(grid.splits, 3, grid.C, dtype=torch.float64) if a.learns else None
    passes = [(True, False), (False, True)] if a.training else [(True, True)]
    for first, last in passes:
        lif.launch(
            norm_lif_bwd_kernel, grid,
            **shared_arguments, **lif.backward_flags(a), p_rows=a.rows, p_gx_sums=gx_sums, p_y=y,
            p_v0=v0, p_g=g, p_gv=g_v, p_line=None if a.line is None else a.line.contiguous(),
            p_dy=dy, p_gv0=g_v0 if a.needs_v0 else None, p_workspace=workspace, p_moved=moved,
            p_partial=partial, N=grid.N, **grid.sizes(), pooled_inner=grid.pooled_inner,
            y_stride=y.stride(0) if a.repeats == 1 else 0, g_stride=0 if g is None else g.stride(0),
            n=grid.steps * grid.M, splits=grid.splits, POOL=norm_ops.POOLS[a.pool],
            SUMS=first, GRADIENT=last, BATCH=a.training,
        )  # fmt: skip
        if first:
            torch.sum(moved, 0, out=gx_sums)
    if partial is not None:
        total = partial.sum(0)
        sums.copy_(total if constants.shape[1] > 1 else total.sum(1, keepdim=True))
    return outputs


norm_ops.define("triton_norm_lif", "CompositeExplicitAutograd", _forward, _backward)
