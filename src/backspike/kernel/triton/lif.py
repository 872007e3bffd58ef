"""The backend "triton", for GPUs, and the operators that launch the kernels of lif_kernels.py.

It is imported only if Triton is installed and there is a GPU, or if Triton's interpreter is on
(TRITON_INTERPRET=1), which runs the same kernels on the CPU for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Protocol

import numpy as np
import torch
import triton
from torch import Tensor

from ...errors import Unsupported
from ...options import CLIF, LIF, AdaptiveLIF
from .. import layout, ops
from ..call import Call, Record, Result
from ..saved import pack
from . import step
from .lif_kernels import lif_bwd_kernel, lif_fwd_kernel, unpack_kernel
from .step import INTERPRETED

# why a kernel did not compile; then the backend refuses all calls
_broken: list[str] = []

_BLOCK = 1024  # elements per program
_SMALL_BLOCK = 256  # for timesteps below _FEW elements, to occupy all multiprocessors
_FEW = 1 << 18


def refuses(call: Call) -> str | None:
    """Why the Triton kernel cannot run the call; None if it can."""
    if reason := wrong_device(call.x):
        return reason
    if call.v0 is not None and call.v0.device != call.x.device:
        return f"the input is on {call.x.device}, but v0 is on {call.v0.device}"
    if isinstance(call.neuron, CLIF):
        return "it has no kernel for the complementary neuron"
    if isinstance(call.neuron, AdaptiveLIF):
        return "it has no kernel for the adaptive neuron"
    name = ops.without_formula(call.neuron, step.CASES)
    if name is not None:
        return f"it has no formula in Triton for {name}"
    if call.x.device.type == "cuda" and not torch.compiler.is_compiling():
        _try_to_compile(call.x.device)
    return _broken[0] if _broken else None


def wrong_device(x: Tensor) -> str | None:
    """Why no Triton kernel can read x where it is; None if they can."""
    if x.device.type == ("cpu" if INTERPRETED.value else "cuda"):
        return None
    where = "in Triton's interpreter, on the CPU" if INTERPRETED.value else "on a GPU"
    return f"it runs {where}, but the input is on {x.device}"


@cache
def _try_to_compile(device: torch.device) -> None:
    """Runs a neuron forward and backward once, as a backward pass has no other backend to go to."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(1, 1, 1, device=device, requires_grad=True)
        call = Call(x, None, LIF(), tau=2.0, theta=1.0, width=None, seed=None, p=None)
        with suppress(Unsupported):  # `launch` has stored the reason
            torch.autograd.grad(run(call).spikes.sum(), x)


def run(call: Call) -> Result:
    """The outputs of the call."""
    return ops.run("triton_lif", call)


def unpack(bits: Tensor, x: Tensor) -> None:
    """Fill x, which must be dense, with the bits as zeros and ones in memory order."""
    grid = Grid((1, x.numel()), (1,), tiled=False)
    launch(unpack_kernel, grid, p_bits=bits, p_x=x, N=grid.N)


# ------------------------------------------------------------------------------------ the operators


def _forward(a: ops.ForwardInputs) -> list[Tensor]:
    x, out = a.x, ops.forward_outputs(a)
    grid = Grid(out.spikes.shape, out.spikes.stride()[1:], tiled=out.moments is not None)
    partial = marks = None
    if out.moments is not None:
        partial = x.new_empty((grid.blocks, *out.moments.shape), dtype=torch.float64)
    if out.active is not None:
        marks = torch.empty(out.spikes.shape, dtype=torch.uint8, device=x.device)
    _launch_forward(
        grid,
        a,
        x,
        ops.SAVED_FORMS[a.form] if a.form in ops.CODE_DTYPES else None,
        a.seed,
        a.p,
        p_s=out.spikes,
        p_u=out.membrane,
        p_v=out.state if Record(*a.records).state else None,
        p_saved=out.saved_u,
        p_active=marks,
        p_bits=out.bits,
        p_partial=partial,
    )
    if partial is not None:
        torch.sum(partial, 0, out=out.moments).div_(grid.N // grid.C)
    if out.active is not None and marks is not None:
        out.active.copy_(pack(marks))
    return ops.present(out)


def _backward(a: ops.BackwardInputs) -> list[Tensor]:
    out, strides, constants, learns = ops.backward_outputs(a), a.strides, a.constants, a.learns
    grid = Grid(a.shape, strides, tiled=learns > 0 and constants.shape[1] > 1)
    saved_u, memory = a.saved_u, ops.SAVED_FORMS[a.form]
    if memory == "recompute":  # compute the membranes again, for this call only
        assert a.x is not None
        saved_u, memory = layout.empty(a.shape, strides, constants.dtype, a.device), "exact"
        _launch_forward(grid, a, a.x, p_u=saved_u)
    partial = None
    if out.sums is not None:
        shape = (grid.blocks, *out.sums.shape)
        partial = torch.zeros(shape, dtype=torch.float64, device=a.device)
    x, g, g_u = (layout.with_strides(b, strides) for b in (a.x, a.g, a.g_u))
    v0, g_v = layout.step_with_strides(a.v0, strides), layout.step_with_strides(a.g_v, strides)
    launch(
        lif_bwd_kernel,
        grid,
        **kernel_arguments(grid, a.device, a, memory, a.seed, a.p),
        **backward_flags(a),
        p_saved=saved_u,
        p_x=x,
        p_v0=v0,
        p_g=g,
        p_gu=g_u,
        p_gv=g_v,
        p_line=None if a.line is None else a.line.contiguous(),
        p_gx=out.gx,
        p_gv0=out.gv0,
        p_partial=partial,
        x_stride=0 if x is None or a.repeats > 1 else x.stride(0),
        g_stride=0 if g is None else g.stride(0),
        gu_stride=0 if g_u is None else g_u.stride(0),
        FORM=form(memory, a),
    )
    if partial is not None:
        torch.sum(partial, 0, out=out.sums)
    return ops.present(out)


ops.define("triton_lif", "CompositeExplicitAutograd", _forward, _backward)


def _launch_forward(
    grid: Grid,
    a: ops.ForwardInputs | ops.BackwardInputs,
    x: Tensor,
    memory: str | None = None,
    seed: Tensor | None = None,
    p: Tensor | None = None,
    **results: Tensor | None,
) -> None:
    x, v0 = layout.with_strides(x, grid.strides), layout.step_with_strides(a.v0, grid.strides)
    outputs = dict.fromkeys(("p_s", "p_u", "p_v", "p_saved", "p_active", "p_bits", "p_partial"))
    launch(
        lif_fwd_kernel,
        grid,
        **kernel_arguments(grid, x.device, a, memory, seed, p),
        **(outputs | results),
        p_x=x,
        p_v0=v0,
        x_stride=x.stride(0) if a.repeats == 1 else 0,
        FORM=form(memory, a),
    )


def form(memory: str | None, a: Encoded) -> str | None:
    """What the kernels are told about `memory`: for 8 bits, which of the codes."""
    if memory != "8bit":
        return memory
    return "logarithmic" if ops.eight_bits(tuple(a.flags), tuple(a.numbers))[1] else "uniform"


class Encoded(Protocol):
    """A neuron as numbers, see `ops.encode`: what the arguments of all operators contain."""

    @property
    def constants(self) -> Tensor: ...

    @property
    def flags(self) -> list[int]: ...

    @property
    def numbers(self) -> list[float]: ...


class EncodedBackward(Encoded, Protocol):
    """And which of its constants are learned."""

    @property
    def learns(self) -> int: ...

    @property
    def repeats(self) -> int: ...


class Grid:
    """How the programs of a kernel divide the elements of a timestep among them.

    shape: `[T, B, ...]`; strides: those of a timestep; tiled: each program takes a tile of rows and
    channels, so that it can sum per channel.
    """

    warps = 4

    def __init__(self, shape: Sequence[int], strides: Sequence[int], tiled: bool) -> None:
        self.broken = _broken  # why kernels do not compile
        self.strides = strides
        self.T = shape[0]
        self.N = math.prod(shape[1:])
        self.C = max(shape[2], 1) if len(shape) > 2 else 1
        self.area = math.prod(shape[3:])
        self.inner = strides[1] if self.C > 1 else max(self.N, 1)
        self.last = self.C > 1 and self.inner == 1 and self.area > 1
        self.rows = _BLOCK if self.N >= _FEW else _SMALL_BLOCK
        self.columns = 0
        self.blocks = self.programs = triton.cdiv(self.N, self.rows)
        if tiled:
            self.columns = min(triton.next_power_of_2(self.C), 64) if self.inner == 1 else 1
            self.rows = _BLOCK // self.columns
            self.blocks = triton.cdiv(self.N // self.C, self.rows)
            self.programs = self.blocks * triton.cdiv(self.C, self.columns)


def backward_flags(a: EncodedBackward) -> dict[str, bool]:
    """The flags that all backward kernels take."""
    return {
        "RESET_GRADIENT": a.numbers[1] != 0,
        "DECAY_INPUT": bool(a.flags[1]),
        "TEMPORAL": bool(a.flags[2]),
        "REPEATED": a.repeats > 1,
        "LEARNS_TAU": bool(a.learns & 1),
        "LEARNS_THETA": bool(a.learns & 2),
        "LEARNS_WIDTH": bool(a.learns & 4),
    }


def kernel_arguments(
    grid: Grid,
    device: torch.device,
    a: Encoded,
    memory: str | None = None,
    seed: Tensor | None = None,
    p: Tensor | None = None,
) -> dict[str, object]:
    """The arguments that all kernels of a neuron take."""
    constants, numbers = a.constants, a.numbers
    soft, _, _, rescale, parametric, *_ = a.flags
    encoded = tuple(a.flags), tuple(numbers)
    unit = ops.eight_bits(*encoded)[0] if memory == "8bit" else 1.0
    values = [*numbers[:2], 1 / unit, unit, 1 - torch.finfo(constants.dtype).eps / 2]
    surrogate, replacement = ops.surrogates(*encoded)
    for s in (surrogate, replacement):
        values += () if s is None else (*s.constants(), 0.0, 0.0)[:3]
    if p is not None and p.device != device:
        p = on_device((float(p),), torch.float64, device)
    return {
        "p_constants": moved(constants, device).contiguous(),
        "p_numbers": on_device(tuple(values), constants.dtype, device),
        "p_seed": seed,
        "p_p": p,
        "T": grid.T,
        "N": grid.N,
        "C": grid.C,
        "inner": grid.inner,
        "area": grid.area,
        "SOFT": bool(soft),
        "CHANNELS_LAST": grid.last and seed is not None,
        "PER_CHANNEL": constants.shape[1] > 1,
        "PARAMETRIC": bool(parametric),
        "RESCALE": bool(rescale),
        "FAMILY": type(surrogate).__name__,
        "REPLACEMENT": None if replacement is None else type(replacement).__name__,
    }


def moved(table: Tensor, device: torch.device) -> Tensor:
    """A small table on the device; one of fixed numbers is still on the CPU."""
    if table.device == device:
        return table
    return on_device(tuple(table.flatten().tolist()), table.dtype, device).view(table.shape)


@lru_cache(maxsize=1024)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of these values on the device.

    It is copied there only once, so that a training step neither waits for the host nor copies
    inside a CUDA graph.
    """
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def launch(kernel: triton.JITFunction, grid: Grid, **arguments: object) -> None:
    """Launch a kernel; raises `Unsupported` if it does not compile on this machine.

    `grid.broken` then gets the reason.
    """
    if not grid.N:
        return
    options = {
        "ROWS": grid.rows,
        "COLUMNS": grid.columns,
        "num_warps": grid.warps,
        "enable_fp_fusion": False,
    }
    # the interpreter computes in numpy, which warns where a GPU silently produces infinity
    with (
        torch.cuda.device_of(next(a for a in arguments.values() if isinstance(a, Tensor))),
        np.errstate(all="ignore"),
    ):
        try:
            kernel[(grid.programs,)](**arguments, **options)
        except Exception as error:
            if "[CUDA]" in str(error):  # a device error, possibly from an earlier kernel
                raise
            message = (getattr(error, "error_message", None) or str(error)).strip().split("\n")[0]
            reason = f"its kernel does not compile here ({type(error).__name__}: {message})"
            grid.broken.append(reason)
            raise Unsupported(
                f"backend 'triton': {reason}; use backend='eager', or another version of Triton"
            ) from error
