"""2x2 pools of spikes that save one byte per window (max) or nothing (average) for backward.

torch saves an index of eight bytes per window, or the input. Values and gradients equal torch's bit
for bit. Other window sizes, devices and dtypes are passed on to torch.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..autograd import Context, refuse_double_backward
from . import library

Size = int | tuple[int, int]
_GRAIN = 65536  # elements per thread, below which another thread does not pay


def max_pool(
    x: Tensor, kernel_size: Size = 2, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """`F.max_pool2d` of `[N, C, H, W]`, saving less for backward if the window is 2x2."""
    if not _is_2x2(x, kernel_size, stride, padding):
        return F.max_pool2d(x, kernel_size, stride, padding)
    return _Pool.apply(x, True) if _learns(x) else torch.ops.backspike.pool_forward(x, True)[0]


def avg_pool(
    x: Tensor, kernel_size: Size = 2, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """`F.avg_pool2d` of `[N, C, H, W]`, saving less for backward if the window is 2x2."""
    if not _is_2x2(x, kernel_size, stride, padding):
        return F.avg_pool2d(x, kernel_size, stride, padding)
    return _Pool.apply(x, False) if _learns(x) else torch.ops.backspike.pool_forward(x, False)[0]


def _is_2x2(x: Tensor, kernel_size: Size, stride: Size | None, padding: Size) -> bool:
    sizes = all(
        n in (2, (2, 2), [2, 2])
        for n in (kernel_size, kernel_size if stride in (None, []) else stride)
    )
    if not (sizes and padding in (0, (0, 0), [0, 0]) and x.dim() == 4):
        return False
    return (
        library.available()
        and x.device.type == "cpu"
        and x.dtype in library.SUFFIX
        and x.numel() > 0
        and min(x.shape[2:]) >= 2
    )


def _learns(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, maximum: bool) -> Tensor:
        y, codes = torch.ops.backspike.pool_forward(x, maximum)
        ctx.save_for_backward(codes)
        ctx.maximum, ctx.size = maximum, x.shape[2:]
        return y

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor, None]:
        refuse_double_backward("a pool of spikes")
        (codes,) = ctx.saved_tensors
        return torch.ops.backspike.pool_backward(g, codes, *ctx.size, ctx.maximum), None


# ------------------------------------------------------------------------------------ the operators


class _Job(ctypes.Structure):
    """The struct Pool of pool.c, where the fields are documented."""

    _fields_ = [
        *library.fields(ctypes.c_int64, "images C H W threads"),
        *library.fields(ctypes.c_void_p, "p_x p_y p_codes"),
    ]


ops.library.define("pool_forward(Tensor x, bool maximum) -> (Tensor, Tensor)")
ops.library.define(
    "pool_backward(Tensor g, Tensor codes, SymInt H, SymInt W, bool maximum) -> Tensor"
)


def _format(x: Tensor) -> torch.memory_format:
    """The memory format used for x: channels-last if x has it and is not contiguous."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _forward_outputs(x: Tensor, maximum: bool) -> tuple[Tensor, Tensor]:
    shape = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
    codes = (
        torch.empty_like(y, dtype=torch.uint8)
        if maximum
        else torch.empty(0, dtype=torch.uint8, device=x.device)
    )
    return y, codes


def _backward_output(g: Tensor, codes: Tensor, H: int, W: int) -> Tensor:
    memory_format = _format(codes if codes.dim() == 4 else g)
    return torch.empty(
        (*g.shape[:2], H, W), dtype=g.dtype, device=g.device, memory_format=memory_format
    )


@torch.library.register_fake("backspike::pool_forward", lib=ops.library)
def _(x: Tensor, maximum: bool) -> tuple[Tensor, Tensor]:
    return _forward_outputs(x, maximum)


@torch.library.register_fake("backspike::pool_backward", lib=ops.library)
def _(g: Tensor, codes: Tensor, H: int, W: int, maximum: bool) -> Tensor:
    return _backward_output(g, codes, H, W)


@torch.library.impl(ops.library, "pool_forward", "CPU")
def _pool_forward(x: Tensor, maximum: bool) -> tuple[Tensor, Tensor]:
    y, codes = _forward_outputs(x, maximum)
    x = x.contiguous(memory_format=_format(x))
    _call("pool_forward", x, y, codes if maximum else None, x)
    return y, codes


@torch.library.impl(ops.library, "pool_backward", "CPU")
def _pool_backward(g: Tensor, codes: Tensor, H: int, W: int, maximum: bool) -> Tensor:
    gx = _backward_output(g, codes, H, W)
    g = g.contiguous(memory_format=_format(gx))
    _call("pool_backward", g, gx, codes if maximum else None, gx)
    return gx


def _call(name: str, x: Tensor, y: Tensor, codes: Tensor | None, large: Tensor) -> None:
    """large: the tensor of the two that is not pooled."""
    N, C, H, W = large.shape
    images, C = (N, C) if _format(large) == torch.channels_last else (N * C, 1)
    threads = min(torch.get_num_threads(), 1 + large.numel() // _GRAIN)
    job = _Job(images=images, C=C, H=H, W=W, threads=threads)
    library.set_pointers(job, x=x, y=y, codes=codes)
    library.function(name, x.dtype)(ctypes.byref(job))
