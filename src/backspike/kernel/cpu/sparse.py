"""Products of a matrix of spikes, packed as bits, with a dense matrix, on the CPU.

`Spikes` is a matrix of bits `[M, K]` that computes the output of a linear layer and the gradient of
its weight. `how` selects whether the rows at the spikes are added (work proportional to the number
of spikes) or their sums are looked up in small tables (the same work at any density).
`sampled` computes the gradient of the input only where bits are set. All sums are in float32, in an
order that does not depend on the number of threads. Matrices are float32 or bfloat16.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from . import library
from .library import fields, function

How = Literal["gather", "lookup"]
DTYPES = (torch.float32, torch.bfloat16)
# The weight gradient of 12,800 samples, 700 inputs and 128 outputs, in ms on a Xeon core:
# scattered 5.2 at 2 % and 7.9 at 4 %, half of it for the lists, unless the output made them;
# collected 5.0 and 6.0. Of 2,048 samples, 1,024 inputs and outputs: scattered 7.5 and 11.9,
# collected 8.3 and 7.1. Both give the same bits.
SCATTER_BELOW = 0.03
_GRAIN = 1 << 18  # operations per thread, below which another thread does not pay


class _Bits(ctypes.Structure):
    """Like the next two classes, a struct of sparse.h, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "M K transposed threads"),
        *fields(ctypes.c_void_p, "p_bits p_words p_start p_index"),
    ]


class _Product(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int64, "R C N threads a_row a_column a_half y_row y_column y_half"),
        *fields(ctypes.c_void_p, "p_start p_index p_words p_a p_bias p_total p_y p_scratch"),
    ]


class _Sampled(ctypes.Structure):
    _fields_ = [
        *fields(ctypes.c_int64, "M K N threads half x_half"),
        *fields(ctypes.c_void_p, "p_bits p_g p_w p_x p_scratch"),
    ]


@dataclass(frozen=True)
class Spikes:
    """A matrix of zeros and ones `[M, K]` as bits, of which `ones` are set.

    bits: uint8; bit i of byte k is element 8 k + i in C order. lists: of the bits of each row, as
    `listed` makes them; None to make them for each product. With lists of few spikes, gather needs
    no bits.
    """

    bits: Tensor | None
    M: int
    K: int
    ones: int
    lists: tuple[Tensor, Tensor] | None = None

    def listed(self) -> Spikes:
        """The same matrix with lists, for several products."""
        if self.lists is not None:
            return self
        start = torch.empty(self.M + 1, dtype=torch.int64, device="cpu")
        index = torch.empty(self.ones, dtype=torch.int32, device="cpu")
        bits = self._job(False)
        bits.p_start, bits.p_index = pointer(start), pointer(index)
        function("sparse_lists")(ctypes.byref(bits))
        return replace(self, lists=(start, index))

    def times(self, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        """spikes @ weight.T + bias: `[M, N]` in the dtype of the weight `[N, K]`."""
        y = torch.empty(self.M, weight.shape[0], dtype=weight.dtype, device="cpu")
        self._product(how, False, weight, weight.stride()[::-1], y, y.stride(), bias)
        return y

    def weight_gradient(self, g: Tensor, how: How, total: Tensor | None = None) -> Tensor:
        """g.T @ spikes: float32 `[N, K]` for g `[M, N]`.

        total: gets the sum of g over its rows, float32 `[N]`; not with lookup.
        """
        out = torch.empty(g.shape[1], self.K, device="cpu")
        self._product(how, True, g, g.stride(), out, out.stride()[::-1], None, total)
        return out

    def gradients(self, g: Tensor, how: How) -> tuple[Tensor, Tensor]:
        """The gradients of weight and bias: g.T @ spikes `[N, K]`, and the sum of g `[N]`."""
        if how == "lookup":
            return self.weight_gradient(g, how), g.sum(0)
        total = torch.empty(g.shape[1], device="cpu")
        return self.weight_gradient(g, how, total), total

    @property
    def few(self) -> bool:
        """Whether so few bits are set that the weight gradient needs only the lists."""
        return self.ones < SCATTER_BELOW * self.M * self.K

    def _job(self, transposed: bool) -> _Bits:
        threads = _threads(self.M * self.K // 8)
        return _Bits(
            M=self.M, K=self.K, transposed=transposed, threads=threads, p_bits=pointer(self.bits)
        )

    def _product(
        self,
        how: How,
        transposed: bool,
        a: Tensor,
        a_stride: tuple[int, ...],
        y: Tensor,
        y_stride: tuple[int, ...],
        bias: Tensor | None,
        total: Tensor | None = None,
    ) -> None:
        """y [R, N] = bits [R, C] @ a [C, N] + bias; total: gets the sum of a over its rows.

        a_stride and y_stride are the strides of a and y when seen as these matrices.
        """
        R, C = (self.K, self.M) if transposed else (self.M, self.K)
        N = a.numel() // max(C, 1)
        if not R * C * N:
            y.copy_(torch.zeros((), device="cpu") if bias is None else bias)
            if total is not None:
                total.zero_()
            return
        job = _Product(R=R, C=C, N=N, threads=_threads(R * C * N // 8), p_a=pointer(a))
        bias = None if bias is None else bias.float().contiguous()
        job.p_y, job.p_bias, job.p_total = pointer(y), pointer(bias), pointer(total)
        (job.a_row, job.a_column), (job.y_row, job.y_column) = a_stride, y_stride
        job.a_half, job.y_half = a.dtype == torch.bfloat16, y.dtype == torch.bfloat16
        way = how if how == "lookup" or not transposed else "scatter" if self.few else "collect"
        if way in ("lookup", "collect"):
            steps = -(-C // int(function("sparse_step")()))
            words, bits = (
                torch.empty(steps, R, dtype=torch.int32, device="cpu"),
                self._job(transposed),
            )
            bits.p_words = job.p_words = pointer(words)
            function("sparse_words")(ctypes.byref(bits))
        else:
            lists = self.listed().lists
            assert lists is not None
            job.p_start, job.p_index = map(pointer, lists)
        size = function(f"sparse_{way}_scratch")(ctypes.byref(job))
        scratch = torch.empty(size, device="cpu")
        job.p_scratch = pointer(scratch)
        function(f"sparse_{way}")(ctypes.byref(job))


def sampled(g: Tensor, weight: Tensor, bits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(g @ weight) `[M, K]` where bits are set, and 0 elsewhere.

    g `[M, N]` and weight `[N, K]` must have the same dtype.
    """
    g, weight = g.contiguous(), weight.contiguous()
    (M, N), K = g.shape, weight.shape[1]
    x = torch.empty(M, K, dtype=dtype or g.dtype, device="cpu")
    if not M * N * K:
        return x.zero_()
    job = _Sampled(
        M=M,
        K=K,
        N=N,
        threads=_threads(M * N * K // 8),
        p_bits=pointer(bits),
        p_g=pointer(g),
        p_w=pointer(weight),
        p_x=pointer(x),
    )
    job.half, job.x_half = g.dtype == torch.bfloat16, x.dtype == torch.bfloat16
    scratch = torch.empty(
        job.threads, function("sparse_sampled_scratch")(ctypes.byref(job)), device="cpu"
    )
    job.p_scratch = pointer(scratch)
    function("sparse_sampled")(ctypes.byref(job))
    return x


def available() -> bool:
    """Whether the compiled library has these functions, with the structs defined here."""
    sizes = {"sparse_product_size": _Product, "sparse_sampled_size": _Sampled}
    return library.available() and all(
        function(name)() == ctypes.sizeof(struct) for name, struct in sizes.items()
    )


def pointer(x: Tensor | None) -> int | None:
    """The address of the data of x, or None."""
    return None if x is None else x.data_ptr()


def _threads(work: int) -> int:
    return min(torch.get_num_threads(), 1 + work // _GRAIN)
