"""Pack a tensor of spikes into 1, 4 or 8 bits per element, and unpack it bit for bit.

1 bit holds 0 and 1; 4 and 8 bits hold multiples of 1/4 up to 15/4 and 255/4, as in pooled and
summed spikes. `pack.c` compares every value to see whether it fits; a tensor with any other value
is not packed.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from . import layout
from .cpu import library

_SUFFIX = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_GRAIN = 65536  # elements per thread, below which another thread does not pay


@dataclass(frozen=True)
class Packed:
    """A tensor packed by `pack`; if `bits` is 0, `codes` is the tensor itself."""

    codes: Tensor
    bits: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    nonzero: int | None  # number of nonzero elements; None if the tensor did not fit

    def unpack(self, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor with its strides, by default in its dtype.

        Every floating-point dtype represents the codes exactly.
        """
        dtype = dtype or self.dtype
        if not self.bits:
            return self.codes.to(dtype)
        x = torch.empty_strided(self.shape, self.stride, dtype=dtype, device=self.codes.device)
        n = x.numel()
        if x.device.type != "cpu":
            from .triton.lif import unpack  # its kernels wrote the codes

            unpack(self.codes, x)
            return x
        library.function(f"unpack_{_SUFFIX[dtype]}")(
            _pointer(self.codes), _number(n), _number(self.bits), _pointer(x), _threads(n)
        )
        return x

    def total(self, T: int) -> Tensor:
        """The sum over T of the tensor as `[T, n]`: `[n]`, at least in float32."""
        n = self.shape.numel() // T
        if self.bits != 1 or n % 8 or self.codes.device.type != "cpu":
            wide = torch.promote_types(self.dtype, torch.float32)
            return self.unpack(wide).view(T, n).sum(0)
        x = torch.empty(n, device="cpu")
        library.function("pack_total")(
            _pointer(self.codes), _number(T), _number(n), _pointer(x), _threads(T * n)
        )
        return x.to(torch.promote_types(self.dtype, torch.float32))

    @property
    def density(self) -> float | None:
        """The fraction of nonzero elements; None if the tensor did not fit."""
        return None if self.nonzero is None else self.nonzero / max(self.shape.numel(), 1)


def pack(x: Tensor) -> Packed:
    """Pack x (any shape) into the fewest bits that represent it exactly.

    Each number of bits that is tried takes one pass over x, which stops at the first value that
    does not fit.
    """
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
            codes = torch.empty((n * bits + 7) // 8, dtype=torch.uint8, device="cpu")
            nonzero = library.function(f"pack_{_SUFFIX[x.dtype]}")(
                _pointer(x), _number(n), _number(bits), _pointer(codes), _threads(n)
            )
            if nonzero >= 0:
                return Packed(codes, bits, x.shape, x.stride(), x.dtype, nonzero)
    return Packed(x, 0, x.shape, x.stride(), x.dtype, None)


def count(bits: Tensor) -> int:
    """The number of set bits in a uint8 tensor."""
    return library.function("pack_count")(_pointer(bits), _number(bits.numel()))


_number = ctypes.c_int64


def _pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _threads(n: int) -> ctypes.c_int64:
    return ctypes.c_int64(min(torch.get_num_threads(), 1 + n // _GRAIN))
