"""Spikes kept as bits: a tensor in 1, 4 or 8 bits an element where its values allow it, and back, bit for bit.

1 bit holds 0 and 1; 4 and 8 bits hold k / 4 up to 15 / 4 and 255 / 4: pooled and summed spikes. Whether the values allow
it is found out by comparing every one of them (`pack.c`); a tensor that does not fit is kept as it is.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from . import layout
from .cpu import library

_SUFFIX = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_GRAIN = 65536  # elements that are worth a thread


@dataclass(frozen=True)
class Packed:
    """A tensor packed by `pack`. `bits` is 0 where `codes` is the tensor itself."""

    codes: Tensor
    bits: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    nonzero: int | None  # how many elements are not zero; None where the tensor did not fit

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, with its strides; in another floating dtype if asked, which every code fits exactly."""
        dtype = dtype or self.dtype
        if not self.bits:
            return self.codes.to(dtype)
        x = torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.codes.device)
        n = x.numel()
        if x.device.type != "cpu":
            from .triton.lif import unpack  # which wrote them

            unpack(self.codes, x)
            return x
        library.function(f"unpack_{_SUFFIX[dtype]}")(
            _pointer(self.codes), _number(n), _number(self.bits), _pointer(x), _threads(n)
        )
        return x

    @property
    def density(self) -> float | None:
        return None if self.nonzero is None else self.nonzero / max(self.shape.numel(), 1)


def pack(x: Tensor) -> Packed:
    """x (any shape) in the fewest bits that hold it exactly. Each number tried is a pass over x, ended by the first misfit."""
    x = x.detach()
    if (
        library.available()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in _SUFFIX
        and layout.dense(x)
    ):
        n = x.numel()
        for bits in (1, 4, 8):
            codes = torch.empty((n * bits + 7) // 8, dtype=torch.uint8)
            nonzero = library.function(f"pack_{_SUFFIX[x.dtype]}")(
                _pointer(x), _number(n), _number(bits), _pointer(codes), _threads(n)
            )
            if nonzero >= 0:
                return Packed(codes, bits, x.shape, x.stride(), x.dtype, nonzero)
    return Packed(x, 0, x.shape, x.stride(), x.dtype, None)


def count(bits: Tensor) -> int:
    """How many bits of a uint8 tensor are set."""
    return library.function("pack_count")(_pointer(bits), _number(bits.numel()))


_number = ctypes.c_int64


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _threads(n: int) -> ctypes.c_int64:
    return ctypes.c_int64(min(torch.get_num_threads(), 1 + n // _GRAIN))
