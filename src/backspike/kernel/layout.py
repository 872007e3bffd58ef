"""The memory layout of a timestep.

Kernels walk over a timestep in the memory order of x, channels-last included, without copying it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .autograd import Context


def channels(x: Tensor) -> int:
    """The number of channels of `[T, B, C, ...]`; 1 for `[T, B]`."""
    return x.shape[2] if x.dim() > 2 else 1


def channel_mean(u: Tensor) -> Tensor:
    """The mean of a timestep `[B, C, ...]` over batch and space, per channel, in float64."""
    return u.mean([d for d in range(u.dim()) if d != 1], dtype=torch.float64)


def firing_rate(s: Tensor) -> Tensor:
    """The mean of spikes `[T, B, ...]` over batch and space, `[T, C]` in float64."""
    # a count per sample is exact in float32; for float64 torch would copy all spikes
    counts = s.sum(tuple(range(3, s.dim())), dtype=torch.float32) if s.dim() > 3 else s
    return counts.mean(1, dtype=torch.float64).view(len(s), -1) / s.shape[3:].numel()


def walk_strides(step: Tensor, masked: bool = False) -> tuple[int, ...]:
    """The strides in which kernels walk over a timestep `[B, ...]`.

    These are its own if it is dense and the mask, if any, supports them; otherwise those of C
    order.
    """
    if step.is_contiguous() or (channels_last(step) if masked else dense(step)):
        return step.stride()
    return torch.empty(step.shape, device="meta").stride()


def dense(step: Tensor) -> bool:
    """Whether the elements fill a block of memory without gaps or overlaps, in any order."""
    size = 1
    for stride, n in sorted((stride, n) for stride, n in zip(step.stride(), step.shape) if n != 1):
        if stride != size:
            return False
        size *= n
    return True


def channels_last(step: Tensor) -> bool:
    """Whether a timestep `[B, C, ...]` is dense with the channels innermost."""
    return step.dim() > 2 and step.movedim(1, -1).is_contiguous()


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An uninitialised tensor `[T, B, ...]` whose timesteps have these strides."""
    return torch.empty_strided(shape, (math.prod(shape[1:]), *strides), dtype=dtype, device=device)


MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def with_strides(a: MaybeTensor, strides: Sequence[int]) -> MaybeTensor:
    """a `[T, B, ...]`, copied only if its timesteps do not have these strides.

    The stride of T may be anything.
    """
    if a is None or all(n == 1 or i == j for n, i, j in zip(a.shape[1:], a.stride()[1:], strides)):
        return a
    return empty(a.shape, strides, a.dtype, a.device).copy_(a)


def usual_strides(x: Tensor) -> Tensor:
    """x with the strides that torch gives a new tensor; its gradient gets them too.

    torch's BatchNorm (2.13, CPU) computes wrong gradients if a dimension of size 1 has any other
    stride, as views do, and its input and the gradient of its output have different memory formats.
    """
    return x if 1 not in x.shape or torch.compiler.is_compiling() else _UsualStrides.apply(x)


class _UsualStrides(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        return _restride(x.detach())

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Tensor:
        return _restride(g)


def _restride(x: Tensor) -> Tensor:
    last = not x.is_contiguous() and channels_last(x[None])
    moved = x.movedim(1, -1) if last else x
    strides = torch.empty(moved.shape, device="meta").stride()
    if moved.is_contiguous():
        moved = moved.as_strided(moved.shape, strides)
    else:
        moved = moved.clone(memory_format=torch.contiguous_format)
    return moved.movedim(-1, 1) if last else moved


def state_with_strides(a: MaybeTensor, strides: Sequence[int]) -> MaybeTensor:
    """A state `[B, ...]`, or `[2, B, ...]` as adjacent rows, whose timesteps have these strides."""
    if a is None or a.dim() == len(strides):
        return step_with_strides(a, strides)
    if a.stride(0) == math.prod(a.shape[1:]) and with_strides(a, strides) is a:
        return a
    return empty(a.shape, strides, a.dtype, a.device).copy_(a)


def step_with_strides(a: MaybeTensor, strides: Sequence[int]) -> MaybeTensor:
    """`with_strides` for a single timestep `[B, ...]`."""
    return a if a is None else with_strides(a[None], strides)[0]
