"""How a timestep lies in memory. Kernels walk over it in the order in which x lies, channels last too, and copy nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor


def channels(x: Tensor) -> int:
    return x.shape[2] if x.dim() > 2 else 1


def channel_mean(u: Tensor) -> Tensor:
    """Over batch and space, per channel, in float64."""
    return u.mean([d for d in range(u.dim()) if d != 1], dtype=torch.float64)


def walk_strides(step: Tensor, masked: bool = False) -> tuple[int, ...]:
    """The strides in which a timestep is walked: its own if it lies densely, else, or if the mask could not follow, C order."""
    if step.is_contiguous() or (channels_last(step) if masked else dense(step)):
        return step.stride()
    return torch.empty(step.shape, device="meta").stride()


def dense(step: Tensor) -> bool:
    size = 1
    for stride, n in sorted((stride, n) for stride, n in zip(step.stride(), step.shape) if n != 1):
        if stride != size:
            return False
        size *= n
    return True


def channels_last(step: Tensor) -> bool:
    return step.dim() > 2 and step.movedim(1, -1).is_contiguous()


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`[T, B, ...]` with these strides of a timestep."""
    return torch.empty_strided(shape, (math.prod(shape[1:]), *strides), dtype=dtype, device=device)


MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def with_strides(a: MaybeTensor, strides: Sequence[int]) -> MaybeTensor:
    """a `[T, B, ...]`, each timestep with these strides; T may have any."""
    if a is None or all(n == 1 or i == j for n, i, j in zip(a.shape[1:], a.stride()[1:], strides)):
        return a
    return empty(a.shape, strides, a.dtype, a.device).copy_(a)


def usual_strides(x: Tensor) -> Tensor:
    """x itself, with the strides that torch would give a new tensor; so has its gradient.

    torch's BatchNorm (2.13, CPU) computes wrong gradients where a dimension of size 1 has any other
    stride, as views have, and its input and the gradient of its output lie in different formats.
    """
    return x if 1 not in x.shape or torch.compiler.is_compiling() else _UsualStrides.apply(x)


class _UsualStrides(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _restride(x.detach())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
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


def step_with_strides(a: MaybeTensor, strides: Sequence[int]) -> MaybeTensor:
    """a `[B, ...]` likewise."""
    return a if a is None else with_strides(a[None], strides)[0]
