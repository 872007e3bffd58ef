"""The weight gradient of 3x3 convolutions of spikes on the CPU, by looking up.

conv_lookup.c has the method; it needs stride 1 and padding 1. The gradient of the output is rounded
to 16 bits with random numbers, so the expectation of the result is exact. The result depends on
their seed, but not on the number of threads. Gradients that differ too much are refused.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from . import library
from .conv import Events
from .library import fields, function
from .sparse import pointer
from .winograd import has_vnni

_GRAIN = 1 << 18  # an eighth of the dense multiplications per thread


class _Job(ctypes.Structure):
    """The struct Lookup of conv_lookup.c, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "images C H W N w_n w_c w_h w_w bytes half vnni seed threads"),
        *fields(ctypes.c_void_p, "p_codes p_g p_gw p_places p_sums p_scratch"),
    ]


def available() -> bool:
    """Whether the library looks up in one instruction (AVX-512)."""
    return library.available() and library.active_level() == "v4"


def weight_gradient(x: Events, g: Tensor, weight: Tensor, seed: int) -> Tensor | None:
    """The gradient of a weight `[N, C, 3, 3]`, in float32, with its shape and strides.

    x: spikes, with one bit per element. g: the gradient of the output, `[images, N, H, W]`, in
    float32 or bfloat16. seed: of the random numbers. None if numbers of g differ too much, or are
    not finite.
    """
    assert x.bits == 1
    gw = torch.empty_strided(weight.shape, weight.stride(), device="cpu")
    if not g.numel() * gw.numel():
        return gw.zero_()
    g = g.contiguous(memory_format=torch.channels_last)
    (images, C, H, W), N = x.shape, len(weight)
    threads = min(torch.get_num_threads(), 1 + images * H * W * N * C * 9 // 8 // _GRAIN)
    job = _Job(images=images, C=C, H=H, W=W, N=N, seed=seed, threads=threads)
    job.w_n, job.w_c, job.w_h, job.w_w = gw.stride()
    job.bytes, job.half, job.vnni = x.codes.numel(), g.dtype == torch.bfloat16, has_vnni()
    places, sums, scratch = (
        torch.empty(
            function(f"conv_lookup_{name}")(ctypes.byref(job)), dtype=torch.uint8, device="cpu"
        )
        for name in ("places", "sums", "scratch")
    )
    scratch = scratch.new_empty(threads * scratch.numel())
    job.p_codes, job.p_g, job.p_gw = pointer(x.codes), pointer(g), pointer(gw)
    job.p_places, job.p_sums, job.p_scratch = map(pointer, (places, sums, scratch))
    return gw if function("conv_lookup")(ctypes.byref(job)) else None
