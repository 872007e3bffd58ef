"""Recurrent layers in Triton: one kernel per direction over all T; `recurrent.py` launches them.

A program has a few samples and all neurons of the layer, so that it needs no other program. The
states stay in registers. What goes through the linear layer, the spikes of a timestep or the
gradients of its inputs, is stored as a result anyway; behind a barrier the program reads it back,
with blocks of rows of the weight, which lies in the second cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import step
from .lif_kernels import constants, encode, initial_membrane, step_back, width_in_use
from .step import BASE, INTERPRETED, V_RESET


@triton.jit
def _elements(N, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(offsets of this program's elements [ROWS, COLUMNS] in a timestep, which exist)"""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    return row * n + column, (row < N // n) & (column < n)


@triton.jit
def _product(
    p_rows,
    p_matrix,
    N,
    n,
    zero,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """This program's rows [ROWS, n] of [samples, n], times the matrix [n, n]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    total = zero
    for first in range(0, n, DEPTH):
        across, down = first + tl.arange(0, DEPTH)[None, :], first + tl.arange(0, DEPTH)[:, None]
        a = tl.load(p_rows + row * n + across, mask=(row < N // n) & (across < n), other=0.0)
        b = tl.load(p_matrix + down * n + column, mask=(down < n) & (column < n), other=0.0)
        if INTERPRETED:  # whose product is none of bfloat16
            a, b = a.to(zero.dtype), b.to(zero.dtype)
        total = tl.dot(a, b, total, input_precision="ieee", out_dtype=zero.dtype)
    return total


@triton.jit
def recurrent_fwd_kernel(
    p_constants,  # [5, C] or [5, 1]
    p_numbers,  # see triton/step.py
    p_seed,
    p_p,
    p_x,  # [T, N], T with any stride
    p_v0,
    p_before,  # the spikes before the first timestep
    p_bias,  # [n]
    p_matrix,  # [n, n], the transposed weight
    p_synapse,  # lam and gain
    p_i0,
    p_s,
    p_u,
    p_v,
    p_i,
    p_saved,  # [T, N] codes, or bytes that say whether h is not 0
    p_current,  # [T, N]: the current into the membranes
    T,
    N,
    C,
    inner,
    area,
    n,
    x_stride,
    SOFT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    FORM: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """N = samples x n. Outputs that are not needed are None."""
    o, inside = _elements(N, n, ROWS, COLUMNS)
    channel = o // inner % C
    lam, offset, gain, theta = constants(p_constants, channel, C, PER_CHANNEL)
    w = width_in_use(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    v_reset = tl.load(p_numbers + V_RESET)
    v = initial_membrane(p_v0, p_numbers, o, inside, SOFT)
    zero = tl.zeros((ROWS, COLUMNS), p_numbers.dtype.element_ty)
    bias, i, fed_back = zero, zero, zero
    if p_bias is not None:
        column = tl.arange(0, COLUMNS)[None, :]
        bias += tl.load(p_bias + column, mask=column < n, other=0.0)
    if p_i0 is not None:
        i = tl.load(p_i0 + o, mask=inside, other=0.0)
    if p_before is not None:
        fed_back = _product(p_before, p_matrix, N, n, zero, DEPTH, ROWS, COLUMNS)
    for t in range(T):
        row = tl.cast(t, tl.int64)
        at = row * N + o
        x = tl.load(p_x + row * x_stride + o, mask=inside, other=0.0).to(v.dtype)
        x = step.round_to(x + (bias + fed_back), p_s.dtype.element_ty).to(v.dtype)
        if p_synapse is not None:
            i = tl.load(p_synapse) * i + tl.load(p_synapse + 1) * x
            x = step.round_to(i, p_s.dtype.element_ty).to(v.dtype)
        if p_current is not None:
            tl.store(p_current + at, step.round_to(x, p_s.dtype.element_ty), mask=inside)
        u, doubt = step.membrane(v, x, lam, offset, gain)
        fired = u >= theta
        v = step.reset(u, fired, theta, v_reset, SOFT)
        s = step.round_to(tl.where(fired, 1.0, doubt), p_s.dtype.element_ty)
        tl.store(p_s + at, s, mask=inside)
        if p_u is not None:
            tl.store(p_u + at, u, mask=inside)
        encode(p_saved, at, inside, u, fired, w, theta, p_numbers, FORM, False)
        if FORM == "1bit":
            h = step.derivative(u - theta, None, p_numbers + BASE, FAMILY)
            tl.store(p_saved + at, (h != 0).to(tl.uint8), mask=inside)
        if t < T - 1:
            tl.debug_barrier()  # all spikes of the program are stored
            fed_back = _product(p_s + row * N, p_matrix, N, n, zero, DEPTH, ROWS, COLUMNS)
    if p_v is not None:
        tl.store(p_v + o, v, mask=inside)
    if p_i is not None:
        tl.store(p_i + o, i, mask=inside)


@triton.jit
def recurrent_bwd_kernel(
    p_constants,
    p_numbers,
    p_seed,  # [T]
    p_p,
    p_saved,  # [T, N] membranes or codes, or [T, N / 8] bits
    p_current,
    p_v0,
    p_matrix,  # [n, n], the weight
    p_synapse,
    p_g,
    p_gu,
    p_gv,
    p_gi,
    p_line,  # [2, T, C]: a and b of gu = a + b u
    p_gx,
    p_gv0,
    p_gi0,
    p_sums,  # [3, N]: gradients of tau (times tau^2), theta, width
    T,
    N,
    C,
    inner,
    area,
    n,
    g_stride,
    gu_stride,
    SOFT: tl.constexpr,
    RESET_GRADIENT: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    TEMPORAL: tl.constexpr,
    REPEATED: tl.constexpr,
    LEARNS_TAU: tl.constexpr,
    LEARNS_THETA: tl.constexpr,
    LEARNS_WIDTH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    FORM: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Every timestep has a mask of its own, whose index begins at 0."""
    o, inside = _elements(N, n, ROWS, COLUMNS)
    channel = o // inner % C
    lam, _, gain, theta = constants(p_constants, channel, C, PER_CHANNEL)
    w = width_in_use(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    zero = tl.zeros((ROWS, COLUMNS), p_numbers.dtype.element_ty)
    c, gi, fed_back, d_tau, d_theta, d_width = zero, zero, zero, zero, zero, zero
    if p_gv is not None:
        c = tl.load(p_gv + o, mask=inside, other=0.0)
    if p_gi is not None:
        gi = tl.load(p_gi + o, mask=inside, other=0.0)
    for steps in range(T):
        t = T - 1 - steps
        row = tl.cast(t, tl.int64)
        g = fed_back
        if p_g is not None:
            g += tl.load(p_g + row * g_stride + o, mask=inside, other=0.0).to(zero.dtype)
        p_seed_t = None
        if p_seed is not None:
            p_seed_t = p_seed + t
        gx, c, d_tau, d_theta, d_width = step_back(
            t, o, inside, o, g, c, d_tau, d_theta, d_width, lam, gain, theta, w,
            p_numbers, p_seed_t, p_p, p_saved, p_current, p_v0, p_gu, p_line, T, N, C, channel,
            N, gu_stride, SOFT, RESET_GRADIENT, DECAY_INPUT, TEMPORAL, LEARNS_TAU,
            LEARNS_THETA, LEARNS_WIDTH, RESCALE, FAMILY, REPLACEMENT, FORM,
        )  # fmt: skip
        if p_synapse is not None:
            gi += gx
            gx = tl.load(p_synapse + 1) * gi
            gi = tl.load(p_synapse) * gi
        tl.store(p_gx + row * N + o, step.round_to(gx, p_gx.dtype.element_ty), mask=inside)
        if t > 0:
            tl.debug_barrier()  # all gradients of the program are stored
            fed_back = _product(p_gx + row * N, p_matrix, N, n, zero, DEPTH, ROWS, COLUMNS)
    if p_gv0 is not None:
        tl.store(p_gv0 + o, c, mask=inside)
    if p_gi0 is not None:
        tl.store(p_gi0 + o, gi, mask=inside)
    if LEARNS_TAU:
        tl.store(p_sums + o, d_tau, mask=inside)
    if LEARNS_THETA:
        tl.store(p_sums + N + o, d_theta, mask=inside)
    if LEARNS_WIDTH:
        tl.store(p_sums + 2 * N + o, d_width, mask=inside)
