"""Convolutions 3x3 of stride 1 and padding 1 on the CPU, with a quarter of the multiplications.

`convolve` and `input_gradient` compute by Winograd's F(4x4, 3x3) in 16-bit integers; winograd.c
has the method. Errors are those of bfloat16, also for float32 inputs, and inputs with numbers that
differ too much are refused. `weight_gradient` computes by its transpose in float32
(winograd_weight.c). The order of all sums does not depend on the number of threads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import library
from .library import fields, function
from .sparse import pointer

DTYPES = (torch.float32, torch.bfloat16)
_GRAIN = 1 << 16  # multiplications per thread, below which another thread does not pay


class _Job(ctypes.Structure):
    """The struct Winograd of winograd.c, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "images C H W N w_n w_c w_h w_w half turned vnni threads"),
        *fields(ctypes.c_void_p, "p_x p_w p_bias p_y p_panel p_scratch"),
    ]


class _WeightJob(ctypes.Structure):
    """The struct WinogradWeight of winograd_weight.c, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "images C H W N half threads"),
        *fields(ctypes.c_void_p, "p_x p_g p_w p_scratch"),
    ]


def available() -> bool:
    """Whether the compiled library has these functions, with the structs defined here."""
    sizes = {"winograd_job_size": _Job, "winograd_weight_job_size": _WeightJob}
    return library.available() and all(
        function(name)() == ctypes.sizeof(job) for name, job in sizes.items()
    )


def has_vnni() -> bool:
    """Whether the processor adds products of 16-bit integers in one instruction (AVX-512 VNNI)."""
    return torch.cpu._is_vnni_supported()


def block() -> int:
    """The output channels that the library computes together: 64 (AVX-512), 16 (AVX2) or 8."""
    return int(function("winograd_block")())


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The convolution of x `[images, C, H, W]` with a weight `[N, C, 3, 3]` and a bias `[N]`.

    Its shape is `[images, N, H, W]`, channels-last, in the dtype of x. None if the numbers of x or
    of the weight differ too much, or are not finite.
    """
    return _run(x, weight.float(), bias)


def input_gradient(g: Tensor, weight: Tensor) -> Tensor | None:
    """The gradient `[images, C, H, W]` of x in `convolve`, for that of the output.

    In the layout and dtype of `convolve`, and None in the same cases.
    """
    return _run(g, weight.float().transpose(0, 1), None, turned=True)


def weight_gradient(x: Tensor, g: Tensor) -> Tensor | None:
    """The gradient of the weight in `convolve`, float32 `[N, C, 3, 3]`.

    x: the input `[images, C, H, W]`. g: the gradient of the output `[images, N, H, W]`, in the
    dtype of x. None if the result is not finite. Errors are relative to the largest input times the
    largest gradient of a tile. Needs four times the memory of the weight in float32, and 4.6 kB for
    each channel.
    """
    assert g.dtype == x.dtype
    (images, C, H, W), N = x.shape, g.shape[1]
    if not x.numel() * g.numel():
        return torch.zeros(N, C, 3, 3, device="cpu")
    result = torch.empty(3, 3, C, N, device="cpu")
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    threads = _threads(images * H * W, C * N)
    job = _WeightJob(images=images, C=C, H=H, W=W, N=N, threads=threads)
    job.half = x.dtype == torch.bfloat16
    job.p_x, job.p_g, job.p_w = pointer(x), pointer(g), pointer(result)
    scratch = _bytes(function("winograd_weight_scratch")(ctypes.byref(job)))
    job.p_scratch = pointer(scratch)
    function("winograd_weight")(ctypes.byref(job))
    return result.permute(3, 2, 0, 1) if result.sum().isfinite() else None


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor | None:
    """turned: rows and columns of the weight count from the other end."""
    images, C, H, W = x.shape
    N = len(weight)
    shape = (images, N, H, W)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last, device="cpu")
    if not x.numel() * y.numel():
        return y.copy_(torch.zeros(N, 1, 1, device="cpu") if bias is None else bias.view(N, 1, 1))
    x = x.contiguous(memory_format=torch.channels_last)
    threads = _threads(images * H * W, N * C)
    job = _Job(images=images, C=C, H=H, W=W, N=N, threads=threads)
    job.half, job.turned, job.vnni = x.dtype == torch.bfloat16, turned, has_vnni()
    job.p_x, job.p_w, job.p_y = pointer(x), pointer(weight), pointer(y)
    job.w_n, job.w_c, job.w_h, job.w_w = weight.stride()
    bias = None if bias is None else bias.float().contiguous()
    panel = _bytes(function("winograd_panel")(ctypes.byref(job)))
    scratch = _bytes(threads * function("winograd_scratch")(ctypes.byref(job)))
    job.p_bias, job.p_panel, job.p_scratch = map(pointer, (bias, panel, scratch))
    return y if function("winograd_convolve")(ctypes.byref(job)) else None


def _threads(pixels: int, pairs: int) -> int:
    """pairs: of an input and an output channel."""
    return min(torch.get_num_threads(), 1 + 36 * pixels // 16 * pairs // _GRAIN)


def _bytes(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.uint8, device="cpu")
