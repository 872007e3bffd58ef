"""Sparse convolutions on the CPU, whose work is proportional to the nonzeros of the input.

`Events` is such an input, packed by `pack.py`. It computes the output of a Conv2d and the gradient
of its weight, summed in float32 in an order that does not depend on the number of threads. Weights
and gradients are float32 or bfloat16.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .library import fields, function
from .sparse import pointer

# an eighth of the dense multiplications per thread, below which another thread does not pay
_GRAIN = 1 << 18


class _Job(ctypes.Structure):
    """The struct Conv of conv.h, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "images C H W N out_H out_W KH KW"),
        *fields(
            ctypes.c_int64, "stride_h stride_w pad_h pad_w dilation_h dilation_w w_n w_c w_h w_w"
        ),
        *fields(ctypes.c_int64, "bits bytes half threads"),
        *fields(ctypes.c_void_p, "p_codes p_w p_g p_bias p_y p_gw p_panel p_scratch"),
    ]


@dataclass(frozen=True)
class Geometry:
    """Stride, padding and dilation of a convolution, (height, width) each."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, size: Sequence[int], window: Sequence[int]) -> tuple[int, int]:
        """The (height, width) of the output for an input and a window of these sizes."""
        sizes = zip(size, window, self.stride, self.padding, self.dilation)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width


@dataclass(frozen=True)
class Events:
    """An input `[images, C, H, W]`, packed in the order `[images, H, W, C]`, `bits` per element."""

    codes: Tensor
    bits: int
    shape: torch.Size

    def convolved(self, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """The output of the convolution with a weight `[N, C, KH, KW]`.

        Shape `[images, N, out_H, out_W]`, channels-last, in the dtype of the weight.
        """
        job = self._job(weight.shape, geometry)
        shape = (job.images, job.N, job.out_H, job.out_W)
        y = torch.empty(shape, dtype=weight.dtype, memory_format=torch.channels_last, device="cpu")
        if not y.numel():
            return y
        job.half = weight.dtype == torch.bfloat16
        job.w_n, job.w_c, job.w_h, job.w_w = weight.stride()
        bias = None if bias is None else bias.float().contiguous()
        job.p_w, job.p_bias, job.p_y = pointer(weight), pointer(bias), pointer(y)
        panel = torch.empty(
            function("conv_panel")(ctypes.byref(job)), dtype=torch.uint8, device="cpu"
        )
        scratch = torch.empty(
            job.threads,
            function("conv_forward_scratch")(ctypes.byref(job)),
            dtype=torch.uint8,
            device="cpu",
        )
        job.p_panel, job.p_scratch = pointer(panel), pointer(scratch)
        function("conv_forward")(ctypes.byref(job))
        return y

    def weight_gradient(self, g: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        """The gradient of the weight, in float32, with its shape and strides.

        g: the gradient of the output, `[images, N, out_H, out_W]`, channels-last.
        """
        job = self._job(weight.shape, geometry)
        gw = torch.empty_strided(weight.shape, weight.stride())
        if not g.numel() * gw.numel():
            return gw.zero_()
        job.half = g.dtype == torch.bfloat16
        job.w_n, job.w_c, job.w_h, job.w_w = gw.stride()
        job.p_g, job.p_gw = pointer(g), pointer(gw)
        scratch = torch.empty(
            job.threads,
            function("conv_gradient_scratch")(ctypes.byref(job)),
            dtype=torch.uint8,
            device="cpu",
        )
        job.p_scratch = pointer(scratch)
        function("conv_gradient")(ctypes.byref(job))
        return gw

    def _job(self, weight: torch.Size, geometry: Geometry) -> _Job:
        (images, C, H, W), (N, _, KH, KW) = self.shape, weight
        out_H, out_W = geometry.outputs((H, W), (KH, KW))
        threads = min(
            torch.get_num_threads(), 1 + images * out_H * out_W * N * C * KH * KW // 8 // _GRAIN
        )
        job = _Job(
            images=images,
            C=C,
            H=H,
            W=W,
            N=N,
            out_H=out_H,
            out_W=out_W,
            KH=KH,
            KW=KW,
            threads=threads,
        )
        (job.stride_h, job.stride_w), (job.pad_h, job.pad_w) = geometry.stride, geometry.padding
        job.dilation_h, job.dilation_w = geometry.dilation
        job.bits, job.bytes, job.p_codes = self.bits, self.codes.numel(), pointer(self.codes)
        return job
