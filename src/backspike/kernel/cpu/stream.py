"""One timestep of a network as a program of C operations on buffers of its own (csrc/stream.c)."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import library
from .library import Job, fields

KINDS = (
    "pick",
    "convolution",
    "linear",
    "neuron",
    "integrator",
    "average",
    "maximum",
    "scale",
    "add",
)  # in the order of stream.c
DTYPES = (torch.float32, torch.float64)
BYTES = 64  # of a vector in stream.c
# A convolution computes all products where at least this share of its inputs is not zero, or
# channels / 16 if that is less. The two ways took the same time at 10 % with 2 channels, and
# between 50 % and 65 % with 16 to 128, on one thread of a Xeon with AVX-512.
DENSE = 0.5


class Op(ctypes.Structure):
    """The struct of the same name in stream.c, where the fields are documented."""

    _fields_ = [
        ("neuron", Job),
        *fields(ctypes.c_int64, "kind samples height width channels rows columns outputs"),
        *fields(ctypes.c_int64, "kernel_h kernel_w stride_h stride_w pad_h pad_w"),
        *fields(ctypes.c_int64, "dilation_h dilation_w groups divisor dense"),
        *fields(ctypes.c_void_p, "p_x p_other p_weight p_bias p_pick p_scratch p_padded p_y"),
    ]


class Window(NamedTuple):
    """The window of a convolution or pool, each for height and width."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def fields(self) -> dict[str, int]:
        """As fields of `Op`."""
        return {
            f"{n}_{side}": v for n, pair in self._asdict().items() for side, v in zip("hw", pair)
        }


class Program:
    """Operations that run one after the other in a single call.

    Each reads and writes buffers `[B, height, width, channels]`; what `add` is given stays alive as
    long as the program.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.ops: list[Op] = []
        self.tensors: list[Tensor] = []

    def add(
        self,
        kind: str,
        x: Tensor | None,
        y: Tensor,
        window: Window | None = None,
        job: Job | None = None,
        **given: Any,
    ) -> None:
        """Add an operation from x to y. given: fields of `Op`; tensors set the pointer p_NAME.

        x: None for the input of `run`, which has as many elements as y.
        """
        numbers = {name: n for name, n in given.items() if not isinstance(n, Tensor | None)}
        tensors = {name: t for name, t in given.items() if isinstance(t, Tensor)}
        shape = (y if x is None else x).shape[1:]
        op = Op(
            kind=KINDS.index(kind),
            samples=len(y),
            **dict(zip(("height", "width", "channels"), shape)),
            **dict(zip(("rows", "columns", "outputs"), y.shape[1:])),
            **(window.fields() if window else {}),
            **numbers,
        )
        if job is not None:
            op.neuron = job
        library.set_pointers(op, x=x, y=y, **tensors)
        self.tensors += [y, *([] if x is None else [x]), *tensors.values()]
        self.ops.append(op)

    def add_neuron(
        self, kind: str, x: Tensor, y: Tensor, v: Tensor, table: Tensor, v_reset: float | None
    ) -> None:
        """Add neurons with the state v. table: `kernel.ops.constants`, `[5, C]` or `[5, 1]`."""
        table = table.contiguous()
        job = Job(
            N=y.numel(),
            C=y.shape[-1],
            inner=1,
            per_channel=table.shape[1] > 1,
            soft=v_reset is None,
            v_reset=v_reset or 0.0,
        )
        library.set_pointers(job, constants=table, v0=v)
        self.tensors += [table, v]
        self.add(kind, x, y, job=job)

    def add_synapse(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        window: Window,
        groups: int = 1,
        other: Tensor | None = None,
    ) -> None:
        """Add a convolution or linear layer; `other` is added to its result.

        weight: `[kernel_h, kernel_w, channels, outputs / groups]`.
        """
        _, height, width, channels = x.shape
        linear = height * width * math.prod(window.kernel) == 1
        whole = groups == 1 and y.shape[-1] * self.dtype.itemsize % BYTES == 0
        padded = None
        if whole and not linear:
            padded = x.new_empty(height + 2 * window.pad[0], width + 2 * window.pad[1], channels)
        inputs, share = x[0].numel(), min(DENSE, channels / 16)
        self.add(
            "linear" if linear else "convolution",
            x,
            y,
            window,
            groups=groups,
            dense=inputs + 1 if padded is None else math.ceil(share * inputs),
            weight=weight.contiguous(),
            bias=None if bias is None else bias.contiguous(),
            padded=padded,
            scratch=torch.empty(inputs + 16, dtype=torch.int32, device="cpu"),
            other=other,
        )

    def prepare(self) -> None:
        """Call once, after the last `add`."""
        array = (Op * len(self.ops))(*self.ops)
        self._first = array[0]
        self._arguments = ctypes.byref(array), ctypes.c_int64(len(array))
        self._run = library.function("stream_run", self.dtype)

    def run(self, x: Tensor | None = None) -> None:
        """Run all operations. x: contiguous, for the operation without an input of its own."""
        if x is not None:
            self._first.p_x = x.data_ptr()
        self._run(*self._arguments)
