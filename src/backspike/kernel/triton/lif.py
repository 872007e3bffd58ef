"""The recursion in Triton, for GPUs: one kernel per direction over all T. Kept is the membrane, or less (see saved.py).

A program walks over time with a block of elements whose membranes stay in registers. Elements are taken in the memory order of
x, and where sums per channel are wanted in tiles of rows and channels. Sums are taken block by block in float64 and then over
the blocks, so that they are the same bits every time. Imported only where Triton is installed and has a GPU, or its interpreter
(TRITON_INTERPRET=1), which runs the same kernels on the CPU for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout, ops
from ..call import Result
from ..saved import pack
from . import step
from .step import BASE, BELOW, COARSE, FINE, INTERPRETED, REPLACE, RHO, V_RESET

if TYPE_CHECKING:
    from ..call import Call

LAM, OFFSET, GAIN, THETA, WIDTH = (tl.constexpr(row) for row in range(5))
_BLOCK = 1024  # elements of a program
_SMALL_BLOCK = 256  # where there are few, so that every multiprocessor gets some
_FEW = 1 << 18


def refuses(call: Call) -> str | None:
    kind = "cpu" if INTERPRETED.value else "cuda"
    if call.x.device.type != kind:
        where = (
            "it runs in Triton's interpreter, on the CPU"
            if INTERPRETED.value
            else "it computes on a GPU"
        )
        return f"{where}, and the input is on {call.x.device}"
    if call.v0 is not None and call.v0.device != call.x.device:
        return f"the input is on {call.x.device}, and v0 on {call.v0.device}"
    if call.rule.complementary:
        return "it has no kernel for the complementary neuron"
    name = ops.without_formula(call, step.CASES)
    return None if name is None else f"it has no formula in Triton for {name}"


def run(call: Call) -> Result:
    return ops.run("triton_lif", call)


# ------------------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _elements(N, C, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(where in a timestep the elements of this program lie, which of them there are, its block, the channels of its columns)

    COLUMNS = 0: ROWS in a row. Otherwise a tile [ROWS, COLUMNS]; a column is one channel.
    """
    program = tl.program_id(0).to(tl.int64)
    if COLUMNS == 0:
        block, column = program, 0
        o = program * ROWS + tl.arange(0, ROWS)
        inside = o < N
    else:
        across = tl.cdiv(C, COLUMNS)
        block = program // across
        column = program % across * COLUMNS + tl.arange(0, COLUMNS)
        m, c = (block * ROWS + tl.arange(0, ROWS))[:, None], column[None, :]
        o = m // inner * C * inner + c * inner + m % inner
        inside = (m < N // C) & (c < C)
    return o, inside, block, column


@triton.jit
def _constant(p_constants, row: tl.constexpr, channel, C, PER_CHANNEL: tl.constexpr):
    if PER_CHANNEL:
        value = tl.load(p_constants + row * C + channel)
    else:
        value = tl.load(p_constants + row)
    return value


@triton.jit
def _width(p_constants, channel, C, PER_CHANNEL: tl.constexpr, PARAMETRIC: tl.constexpr):
    w = None
    if PARAMETRIC:
        w = _constant(p_constants, WIDTH, channel, C, PER_CHANNEL)
    return w


@triton.jit
def initial_membrane(p_v0, p_numbers, o, inside, SOFT: tl.constexpr):
    """The membrane before the first step."""
    if p_v0 is not None:
        v = tl.load(p_v0 + o, mask=inside, other=0.0)
    else:
        v = tl.zeros(o.shape, p_numbers.dtype.element_ty)
        if not SOFT:
            v += tl.load(p_numbers + V_RESET)
    return v


@triton.jit
def _logical(o, C, area, LAST: tl.constexpr):
    """The positions that the mask counts. LAST: channels lie last in memory."""
    if LAST:
        o = o // (C * area) * (C * area) + o % C * area + o // C % area
    return o


@triton.jit
def masked_derivative(
    own, u, theta, index, p_seed, p_p, p_numbers, RESCALE: tl.constexpr, INSTEAD: tl.constexpr
):
    """`step.masked` at these logical positions of [T, B, ...], or own twice where there is no mask."""
    if p_seed is None:
        h = own
    else:
        p = tl.load(p_p).to(tl.float64)
        gone = step.dropped(index, tl.load(p_seed), step.cut(p))
        h, own = step.masked(
            own, u, theta, gone, (1 - p).to(own.dtype), p_numbers + REPLACE, RESCALE, INSTEAD
        )
    return h, own


@triton.jit
def _recall(p_kept, at, inside, w, theta, p_numbers, KEEPS: tl.constexpr):
    """(u as the backward pass knows it, whether it fired)"""
    code = tl.load(p_kept + at, mask=inside, other=0.0)
    if KEEPS == "8bit":
        u, fired = step.of_8bit(
            code, w, theta, tl.load(p_numbers + BELOW), tl.load(p_numbers + COARSE)
        )
    elif KEEPS == "bfloat16":
        u, fired = step.of_bfloat16(code, theta, tl.load(p_numbers + BELOW))
    else:
        u, fired = code, code >= theta
    return u, fired


@triton.jit
def lif_fwd_kernel(
    p_constants,  # [5, C] or [5, 1]
    p_numbers,  # see triton/step.py
    p_seed,
    p_p,
    p_x,  # [T, N], T with any stride
    p_v0,
    p_s,
    p_u,
    p_v,
    p_kept,  # [T, N] codes, or [T, N / 8] bits
    p_active,  # [T, N] bytes
    p_bits,  # [T, N / 8], with COLUMNS == 0 alone
    p_partial,  # [blocks, 2, T, C]: sums of u and its square
    T,
    N,
    C,
    inner,
    area,
    x_stride,
    SOFT: tl.constexpr,
    LAST: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    INSTEAD: tl.constexpr,
    KEEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Element i of a timestep has channel i // inner % C. What is not wanted is None."""
    o, inside, block, column = _elements(N, C, inner, ROWS, COLUMNS)
    channel, logical = o // inner % C, _logical(o, C, area, LAST)
    lam = _constant(p_constants, LAM, channel, C, PER_CHANNEL)
    offset = _constant(p_constants, OFFSET, channel, C, PER_CHANNEL)
    gain = _constant(p_constants, GAIN, channel, C, PER_CHANNEL)
    theta = _constant(p_constants, THETA, channel, C, PER_CHANNEL)
    w = _width(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    v_reset = tl.load(p_numbers + V_RESET)
    v = initial_membrane(p_v0, p_numbers, o, inside, SOFT)
    for t in range(T):
        row = tl.cast(t, tl.int64)
        at = row * N + o
        x = tl.load(p_x + row * x_stride + o, mask=inside, other=0.0).to(v.dtype)
        u = step.membrane(v, x, lam, offset, gain)
        fired = u >= theta
        v = step.reset(u, fired, theta, v_reset, SOFT)
        if p_s is not None:
            tl.store(
                p_s + at, step.narrow(tl.where(fired, 1.0, 0.0), p_s.dtype.element_ty), mask=inside
            )
        if p_bits is not None:
            bits = (fired & inside).to(tl.int32).reshape(ROWS // 8, 8) << tl.arange(0, 8)[None, :]
            byte = block * (ROWS // 8) + tl.arange(0, ROWS // 8)
            tl.store(
                p_bits + row * (N // 8) + byte,
                tl.sum(bits, axis=1).to(tl.uint8),
                mask=byte < N // 8,
            )
        if p_u is not None:
            tl.store(p_u + at, u, mask=inside)
        known = u
        if KEEPS == "bfloat16":
            code = step.code_bfloat16(u - theta, fired)
            tl.store(p_kept + at, code, mask=inside)
            if p_active is not None:
                known, _ = step.of_bfloat16(code, theta, tl.load(p_numbers + BELOW))
        elif KEEPS == "8bit":
            z = u - theta
            if PARAMETRIC:
                z = z / w
            code = step.code_8bit(z, fired, tl.load(p_numbers + FINE))
            tl.store(p_kept + at, code, mask=inside)
            if p_active is not None:
                known, _ = step.of_8bit(
                    code, w, theta, tl.load(p_numbers + BELOW), tl.load(p_numbers + COARSE)
                )
        elif KEEPS == "1bit":
            h = step.derivative(u - theta, None, p_numbers + BASE, FAMILY)
            bits = ((h != 0) & inside).to(tl.int32).reshape(ROWS // 8, 8) << tl.arange(0, 8)[
                None, :
            ]
            byte = block * (ROWS // 8) + tl.arange(0, ROWS // 8)
            bytes_of_a_step = tl.cdiv(N, 8)
            tl.store(
                p_kept + row * bytes_of_a_step + byte,
                tl.sum(bits, axis=1).to(tl.uint8),
                mask=byte < bytes_of_a_step,
            )
        if p_active is not None:
            own = step.derivative(known - theta, w, p_numbers + BASE, FAMILY)
            h, _ = masked_derivative(
                own, known, theta, row * N + logical, p_seed, p_p, p_numbers, RESCALE, INSTEAD
            )
            tl.store(p_active + at, (h != 0).to(tl.uint8), mask=inside)
        if p_partial is not None:
            p_sum = p_partial + (block * 2 * T + t) * C + column
            tl.store(
                p_sum, tl.sum(tl.where(inside, u, 0.0).to(tl.float64), axis=0), mask=column < C
            )
            tl.store(
                p_sum + T * C,
                tl.sum(tl.where(inside, u * u, 0.0).to(tl.float64), axis=0),
                mask=column < C,
            )
    if p_v is not None:
        tl.store(p_v + o, v, mask=inside)


@triton.jit
def lif_bwd_kernel(
    p_constants,
    p_numbers,
    p_seed,
    p_p,
    p_kept,  # [T, N] membranes or codes, or [T, N / 8] bits
    p_x,
    p_v0,
    p_g,
    p_gu,
    p_gv,
    p_line,  # [2, T, C]: a and b of gu = a + b u
    p_gx,
    p_gv0,
    p_partial,  # [blocks, 3, C] or [blocks, 3, 1]: what tau (times tau^2), theta and the width get
    T,
    N,
    C,
    inner,
    area,
    x_stride,
    g_stride,
    gu_stride,
    SOFT: tl.constexpr,
    ATTACHED: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    TEMPORAL: tl.constexpr,
    REPEATED: tl.constexpr,
    LEARNS_TAU: tl.constexpr,
    LEARNS_THETA: tl.constexpr,
    LEARNS_WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    INSTEAD: tl.constexpr,
    KEEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """REPEATED: the gradient of x is summed over T."""
    o, inside, block, column = _elements(N, C, inner, ROWS, COLUMNS)
    channel, logical = o // inner % C, _logical(o, C, area, LAST)
    lam = _constant(p_constants, LAM, channel, C, PER_CHANNEL)
    gain = _constant(p_constants, GAIN, channel, C, PER_CHANNEL)
    theta = _constant(p_constants, THETA, channel, C, PER_CHANNEL)
    w = _width(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    v_reset, rho = tl.load(p_numbers + V_RESET), tl.load(p_numbers + RHO)
    none = tl.zeros(o.shape, p_numbers.dtype.element_ty)
    c, gx_sum, d_tau, d_theta, d_width = none, none, none, none, none
    if p_gv is not None:
        c = tl.load(p_gv + o, mask=inside, other=0.0)
    for step_back in range(T):
        t = T - 1 - step_back
        row = tl.cast(t, tl.int64)
        at = row * N + o
        if KEEPS == "1bit":  # the rectangle with the soft reset, for which h says enough
            byte = tl.load(p_kept + row * tl.cdiv(N, 8) + o // 8, mask=inside, other=0).to(tl.int32)
            u, fired = none, inside
            own = tl.where(
                (byte >> (o % 8).to(tl.int32)) & 1 != 0, tl.load(p_numbers + BASE + 1), none
            )
        else:
            u, fired = _recall(p_kept, at, inside, w, theta, p_numbers, KEEPS)
            own = step.derivative(u - theta, w, p_numbers + BASE, FAMILY)
        h, own = masked_derivative(
            own, u, theta, row * N + logical, p_seed, p_p, p_numbers, RESCALE, INSTEAD
        )
        g = none
        if p_g is not None:
            g = tl.load(p_g + row * g_stride + o, mask=inside, other=0.0).to(none.dtype)
        G = step.arriving(g, c, u, theta, v_reset, rho, SOFT, ATTACHED)
        delta = step.total(G * h, c, fired, SOFT)
        if p_gu is not None:
            delta += tl.load(p_gu + row * gu_stride + o, mask=inside, other=0.0)
        if p_line is not None:
            delta += u * tl.load(p_line + (T + t) * C + channel) + tl.load(p_line + t * C + channel)
        if LEARNS_THETA:
            d_theta -= G * h
            if SOFT:
                d_theta -= tl.where(fired, c, 0.0)
        if LEARNS_WIDTH:
            d_width -= ((u - theta) / w) * G * own
        if LEARNS_TAU:
            v, rest = initial_membrane(p_v0, p_numbers, o, inside, SOFT), none
            if t > 0:
                before, fired_before = _recall(p_kept, at - N, inside, w, theta, p_numbers, KEEPS)
                v = step.reset(before, fired_before, theta, v_reset, SOFT)
            if not SOFT:
                rest += v_reset
            distance = v - rest
            if DECAY_INPUT:
                distance -= tl.load(p_x + row * x_stride + o, mask=inside, other=0.0).to(none.dtype)
            d_tau += delta * distance
        if p_gx is not None:
            if REPEATED:
                gx_sum += delta * gain
            else:
                tl.store(p_gx + at, step.narrow(delta * gain, p_gx.dtype.element_ty), mask=inside)
        if TEMPORAL:
            c = delta * lam
        else:
            c = none
    if p_gv0 is not None:
        tl.store(p_gv0 + o, c, mask=inside)
    if REPEATED and p_gx is not None:
        tl.store(p_gx + o, step.narrow(gx_sum, p_gx.dtype.element_ty), mask=inside)
    if p_partial is not None:
        width = C if PER_CHANNEL else 1
        p_sum = p_partial + block * 3 * width + column
        if LEARNS_TAU:
            tl.store(
                p_sum,
                tl.sum(tl.where(inside, d_tau, 0.0).to(tl.float64), axis=0),
                mask=column < width,
            )
        if LEARNS_THETA:
            tl.store(
                p_sum + width,
                tl.sum(tl.where(inside, d_theta, 0.0).to(tl.float64), axis=0),
                mask=column < width,
            )
        if LEARNS_WIDTH:
            tl.store(
                p_sum + 2 * width,
                tl.sum(tl.where(inside, d_width, 0.0).to(tl.float64), axis=0),
                mask=column < width,
            )


@triton.jit
def unpack_kernel(p_bits, p_x, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.load(p_bits + at // 8, mask=at < N, other=0).to(tl.int32)
    tl.store(p_x + at, ((byte >> (at % 8).to(tl.int32)) & 1).to(p_x.dtype.element_ty), mask=at < N)


def unpack(bits: Tensor, x: Tensor) -> None:
    """Fills x, whose elements lie densely, with what bits say of the places of its memory."""
    walk = Walk((1, x.numel()), (1,), tiled=False)
    launch(unpack_kernel, walk, p_bits=bits, p_x=x, N=walk.N)


# ------------------------------------------------------------------------------------------------------- the operators

ops.define("triton_lif")


@torch.library.impl(ops.library, "triton_lif_forward", "CompositeExplicitAutograd")
def _forward(
    x: Any,
    v0: Any,
    constants: Any,
    seed: Any,
    p: Any,
    flags: Any,
    numbers: Any,
    repeats: int,
    keeps: int,
    records: Sequence[bool],
) -> Any:
    out = ops.forward_outputs(x, seed is not None, repeats, keeps, records)
    walk = Walk(out.spikes.shape, out.spikes.stride()[1:], tiled=out.moments is not None)
    partial = (
        None
        if out.moments is None
        else x.new_empty((walk.blocks, *out.moments.shape), dtype=torch.float64)
    )
    marks = (
        None
        if out.active is None
        else torch.empty(out.spikes.shape, dtype=torch.uint8, device=x.device)
    )
    _launch_forward(
        walk, x, v0, constants, seed, p, flags, numbers, repeats, ops.KEEPS[keeps] if keeps in ops.CODES else None,
        p_s=out.spikes, p_u=out.membrane, p_v=out.state if records[4] else None, p_kept=out.kept, p_active=marks,
        p_bits=out.bits, p_partial=partial,
    )  # fmt: skip
    if partial is not None:
        torch.sum(partial, 0, out=out.moments).div_(walk.N // walk.C)
    if out.active is not None and marks is not None:
        out.active.copy_(pack(marks))
    return ops.given(out)


@torch.library.impl(ops.library, "triton_lif_backward", "CompositeExplicitAutograd")
def _backward(
    kept: Any,
    v0: Any,
    x: Any,
    constants: Any,
    seed: Any,
    p: Any,
    g: Any,
    g_v: Any,
    g_u: Any,
    line: Any,
    shape: Sequence[int],
    strides: Sequence[int],
    flags: Any,
    numbers: Any,
    repeats: int,
    keeps: int,
    learns: int,
    dtype: Any,
    needs_x: bool,
    needs_v0: bool,
) -> Any:
    device = (x if kept is None else kept).device
    out = ops.backward_outputs(
        constants, device, shape, strides, repeats, learns, dtype, needs_x, needs_v0
    )
    walk = Walk(shape, strides, tiled=learns > 0 and constants.shape[1] > 1)
    memory = ops.KEEPS[keeps]
    if memory == "recompute":  # the membranes once more, for as long as this lasts
        kept, memory = layout.empty(shape, strides, constants.dtype, device), "exact"
        _launch_forward(walk, x, v0, constants, None, None, flags, numbers, repeats, None, p_u=kept)
    partial = (
        None
        if out.sums is None
        else kept.new_zeros((walk.blocks, *out.sums.shape), dtype=torch.float64)
    )
    x, g, g_u = (layout.arranged(a, strides) for a in (x, g, g_u))
    v0, g_v = layout.one(v0, strides), layout.one(g_v, strides)
    launch(
        lif_bwd_kernel,
        walk,
        **kernel_arguments(walk, device, constants, seed, p, flags, numbers, memory),
        p_kept=kept,
        p_x=x,
        p_v0=v0,
        p_g=g,
        p_gu=g_u,
        p_gv=g_v,
        p_line=None if line is None else line.contiguous(),
        p_gx=out.gx,
        p_gv0=out.gv0,
        p_partial=partial,
        x_stride=0 if x is None or repeats > 1 else x.stride(0),
        g_stride=0 if g is None else g.stride(0),
        gu_stride=0 if g_u is None else g_u.stride(0),
        ATTACHED=numbers[1] != 0,
        DECAY_INPUT=bool(flags[1]),
        TEMPORAL=bool(flags[2]),
        REPEATED=repeats > 1,
        LEARNS_TAU=bool(learns & 1),
        LEARNS_THETA=bool(learns & 2),
        LEARNS_WIDTH=bool(learns & 4),
        KEEPS=memory,
    )
    if partial is not None:
        torch.sum(partial, 0, out=out.sums)
    return ops.given(out)


def _launch_forward(
    walk: Walk,
    x: Tensor,
    v0: Tensor | None,
    constants: Tensor,
    seed: Tensor | None,
    p: Tensor | None,
    flags: Sequence[int],
    numbers: Sequence[float],
    repeats: int,
    memory: str | None,
    **results: Tensor | None,
) -> None:
    x, v0 = layout.arranged(x, walk.strides), layout.one(v0, walk.strides)  # type: ignore[assignment]
    wanted = (
        dict.fromkeys(("p_s", "p_u", "p_v", "p_kept", "p_active", "p_bits", "p_partial")) | results
    )
    given = kernel_arguments(walk, x.device, constants, seed, p, flags, numbers, memory)
    launch(
        lif_fwd_kernel,
        walk,
        **given,
        p_x=x,
        p_v0=v0,
        **wanted,
        x_stride=x.stride(0) if repeats == 1 else 0,
        KEEPS=memory,
    )


class Walk:
    """How programs share the elements of a timestep, `[T, B, ...]` with these strides of a timestep."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], tiled: bool) -> None:
        self.strides = strides
        self.T, self.N, self.C = (
            shape[0],
            math.prod(shape[1:]),
            max(shape[2], 1) if len(shape) > 2 else 1,
        )
        self.area = math.prod(shape[3:])
        self.inner = strides[1] if self.C > 1 else max(self.N, 1)
        self.last = self.C > 1 and self.inner == 1 and self.area > 1
        self.rows, self.columns = _BLOCK if self.N >= _FEW else _SMALL_BLOCK, 0
        self.blocks = self.programs = triton.cdiv(self.N, self.rows)
        if tiled:
            self.columns = min(triton.next_power_of_2(self.C), 64) if self.inner == 1 else 1
            self.rows = _BLOCK // self.columns
            self.blocks = triton.cdiv(self.N // self.C, self.rows)
            self.programs = self.blocks * triton.cdiv(self.C, self.columns)


def kernel_arguments(
    walk: Walk,
    device: torch.device,
    constants: Tensor,
    seed: Tensor | None,
    p: Tensor | None,
    flags: Sequence[int],
    numbers: Sequence[float],
    memory: str | None,
) -> dict[str, Any]:
    """The arguments that both kernels have."""
    rule = tuple(flags), tuple(numbers)
    soft, _, _, rescale, parametric, *_ = flags
    end = ops.reach(*rule) if memory == "8bit" else 1.0
    values = [*numbers[:2], 128 / end, end / 128, 1 - torch.finfo(constants.dtype).eps / 2]
    surrogate, instead = ops.surrogates(*rule)
    for s in (surrogate, instead):
        values += () if s is None else (*s.constants(), 0.0, 0.0)[:3]
    if constants.device != device:
        constants = on_device(tuple(constants.flatten().tolist()), constants.dtype, device).view(
            constants.shape
        )
    if p is not None and p.device != device:
        p = on_device((float(p),), torch.float64, device)
    return {
        "p_constants": constants.contiguous(),
        "p_numbers": on_device(tuple(values), constants.dtype, device),
        "p_seed": seed,
        "p_p": p,
        "T": walk.T,
        "N": walk.N,
        "C": walk.C,
        "inner": walk.inner,
        "area": walk.area,
        "SOFT": bool(soft),
        "LAST": walk.last and seed is not None,
        "PER_CHANNEL": constants.shape[1] > 1,
        "PARAMETRIC": bool(parametric),
        "RESCALE": bool(rescale),
        "FAMILY": type(surrogate).__name__,
        "INSTEAD": None if instead is None else type(instead).__name__,
    }


@lru_cache(maxsize=1024)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied once, so that a step of training neither waits for the host nor copies inside a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def launch(kernel: Any, walk: Walk, **arguments: Any) -> None:
    if not walk.N:
        return
    options = {
        "ROWS": walk.rows,
        "COLUMNS": walk.columns,
        "num_warps": 4,
        "enable_fp_fusion": False,
    }
    # the interpreter computes in numpy, which warns where a GPU goes on with infinity
    with (
        torch.cuda.device_of(next(a for a in arguments.values() if isinstance(a, Tensor))),
        np.errstate(all="ignore"),
    ):
        try:
            kernel[(walk.programs,)](**arguments, **options)
        except Exception as error:
            if "[CUDA]" in str(error):  # of the device, perhaps of an earlier kernel
                raise
            from ...errors import Unsupported

            said = (getattr(error, "error_message", None) or str(error)).strip().split("\n")[0]
            why = f"its kernel does not compile here ({type(error).__name__}: {said})"
            raise Unsupported(
                f"backend 'triton': {why}; use backend='eager', or another version of Triton"
            ) from error
