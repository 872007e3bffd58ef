"""BatchNorm, neuron and 2x2 pool, or an addition, in Triton: the GPU counterpart of norm.c.

One pass over the input y computes the statistics. The forward pass computes x = y scale + shift
where the neuron reads it, and saves only y and the constants of the channels for backward. The
backward pass recomputes u from y, one tile with all its timesteps at a time, in a workspace of
fixed size that stays in the cache. It does so twice, because the gradient through the statistics
needs sums over all elements: first for the sums, then for

    dy = scale (gx - mean(gx) - (y - mean) rstd^2 mean(gx (y - mean)))

Sums are computed tile by tile in float64, always in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import step
from .lif_kernels import GAIN, LAM, OFFSET, THETA, WIDTH, initial_membrane, masked_derivative
from .step import BASE, RHO, V_RESET

# rows of the constants of the channels, which norm.py saves
MEAN, VARIANCE, RSTD, SCALE, SHIFT = (tl.constexpr(row) for row in range(5))
SAMPLES = tl.constexpr(16)  # elements of y averaged for a first guess of the mean


@triton.jit
def _program(C, COLUMNS: tl.constexpr):
    """(the index of this program's share of the positions, its channels)"""
    across = tl.cdiv(C, COLUMNS)
    channels = (tl.program_id(0) % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    return tl.program_id(0) // across, channels


@triton.jit
def _tile(block, column, M, C, H, W, inner, ROWS: tl.constexpr, WINDOWS: tl.constexpr):
    """(offsets of the elements of a tile in a timestep, their indices for the mask, which exist).

    A tile is [ROWS, 1, channels] of positions, or with WINDOWS [ROWS, 4, channels] of 2x2 windows.
    Position m of the M positions of a channel is pixel m % (H W) of sample m // (H W). Element
    (m, c) is at (m // inner C + c) inner + m % inner.
    """
    c = column[None, None, :]
    r = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    if WINDOWS:
        across, down = (W + 1) // 2, (H + 1) // 2
        k = tl.arange(0, 4)[None, :, None]
        h, w = r // across % down * 2 + k // 2, r % across * 2 + k % 2
        m = (r // (across * down) * H + h) * W + w
        inside = (h < H) & (w < W) & (m < M) & (c < C)
    else:
        m = r
        inside = (m < M) & (c < C)
    area = H * W
    return (m // inner * C + c) * inner + m % inner, (m // area * C + c) * area + m % area, inside


@triton.jit
def _pooled(block, column, M, C, H, W, inner, ROWS: tl.constexpr):
    """(offset of the result of each window, which windows are complete), [ROWS, channels]"""
    c = column[None, :]
    r = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    across, down = (W + 1) // 2, (H + 1) // 2
    h, w, b = r // across % down, r % across, r // (across * down)
    m = (b * (H // 2) + h) * (W // 2) + w
    complete = (b * H * W < M) & (h < H // 2) & (w < W // 2) & (c < C)
    return (m // inner * C + c) * inner + m % inner, complete


@triton.jit
def _row(p_rows, which: tl.constexpr, column, C, dtype: tl.constexpr):
    """A constant of the channels, [1, 1, channels], rounded to the dtype of the state."""
    return tl.load(p_rows + which * C + column, mask=column < C, other=0.0).to(dtype)[None, None, :]


@triton.jit
def _constant(p_constants, which: tl.constexpr, column, C, PER_CHANNEL: tl.constexpr):
    if PER_CHANNEL:
        value = tl.load(p_constants + which * C + column, mask=column < C, other=1.0)[None, None, :]
    else:
        value = tl.load(p_constants + which)
    return value


@triton.jit
def _columns(column, x):
    """x, [ROWS, windows, channels], summed per channel, in float64."""
    return tl.sum(tl.sum(x, axis=1), axis=0).to(tl.float64)


@triton.jit
def _read(p, at, inside, dtype: tl.constexpr):
    return tl.load(p + at, mask=inside, other=0.0).to(dtype)


@triton.jit
def _store_bits(p_bits, at, fired, valid, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store spikes [ROWS, channels] as bits; at: their offsets."""
    shifts = tl.arange(0, 8)[None, None, :]
    bits = (fired & valid).to(tl.int32).reshape(ROWS, COLUMNS // 8, 8) << shifts
    byte = tl.min(at.reshape(ROWS, COLUMNS // 8, 8), axis=2) // 8
    some = tl.max(valid.to(tl.int32).reshape(ROWS, COLUMNS // 8, 8), axis=2) != 0
    tl.store(p_bits + byte, tl.sum(bits, axis=2).to(tl.uint8), mask=some)


@triton.jit
def statistics_kernel(
    p_y,  # [steps, N], timesteps y_stride apart
    p_guess,  # [C]
    p_partial,  # [splits, 2, C]: sums of y - guess and of its square
    steps,
    M,
    C,
    H,
    W,
    inner,
    y_stride,
    splits,
    dtype: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum y - guess and its square per channel, where guess is the mean of a few samples."""
    split, column = _program(C, COLUMNS)
    sample = (tl.arange(0, SAMPLES).to(tl.int64) * M // SAMPLES)[:, None]
    at = (sample // inner * C + column[None, :]) * inner + sample % inner
    guess = (
        tl.sum(tl.load(p_y + at, mask=column[None, :] < C, other=0.0).to(dtype), axis=0) / SAMPLES
    )
    if split == 0:
        tl.store(p_guess + column, guess, mask=column < C)
    a, q = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    blocks = tl.cdiv(M, ROWS)
    for block in range(split, blocks, splits):
        o, _logical, inside = _tile(block, column, M, C, H, W, inner, ROWS, False)
        for t in range(steps):
            y = _read(p_y, tl.cast(t, tl.int64) * y_stride + o, inside, dtype)
            d = tl.where(inside, y - guess[None, None, :], 0.0)
            a += _columns(column, d)
            q += _columns(column, d * d)
    p_sum = p_partial + split * 2 * C + column
    tl.store(p_sum, a, mask=column < C)
    tl.store(p_sum + C, q, mask=column < C)


@triton.jit
def affine_kernel(
    p_guess,  # None: p_rows already has mean and variance
    p_partial,
    p_weight,
    p_bias,
    p_rows,  # [5, C] float64
    n,  # values per channel
    C,
    splits,
    eps,  # a tensor of one float64
    dtype: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the constants of the channels from the sums of the programs."""
    _, column = _program(C, COLUMNS)
    inside = column < C
    if p_guess is not None:
        a, q = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
        for first in range(0, splits, ROWS):
            split = (first + tl.arange(0, ROWS))[:, None]
            at, valid = split * 2 * C + column[None, :], (split < splits) & inside[None, :]
            a += tl.sum(tl.load(p_partial + at, mask=valid, other=0.0), axis=0)
            q += tl.sum(tl.load(p_partial + at + C, mask=valid, other=0.0), axis=0)
        count = tl.cast(n, tl.float64)
        moved = a / count
        mean = tl.load(p_guess + column, mask=inside, other=0.0).to(tl.float64) + moved
        variance = q / count - moved * moved
        variance = tl.where(variance < 0, 0.0, variance)  # a NaN stays one
        tl.store(p_rows + MEAN * C + column, mean, mask=inside)
        tl.store(p_rows + VARIANCE * C + column, variance, mask=inside)
    else:
        mean = tl.load(p_rows + MEAN * C + column, mask=inside, other=0.0)
        variance = tl.load(p_rows + VARIANCE * C + column, mask=inside, other=1.0)
    rstd = 1 / tl.sqrt(variance + tl.load(eps))
    scale, shift = rstd, tl.zeros([COLUMNS], tl.float64)
    if p_weight is not None:
        scale *= tl.load(p_weight + column, mask=inside, other=0.0).to(dtype).to(tl.float64)
    if p_bias is not None:
        shift += tl.load(p_bias + column, mask=inside, other=0.0).to(dtype).to(tl.float64)
    scale = scale.to(dtype).to(tl.float64)
    shift = (shift - mean * scale).to(dtype).to(tl.float64)
    tl.store(p_rows + RSTD * C + column, rstd, mask=inside)
    tl.store(p_rows + SCALE * C + column, scale, mask=inside)
    tl.store(p_rows + SHIFT * C + column, shift, mask=inside)


@triton.jit
def norm_lif_fwd_kernel(
    p_constants,  # [5, C] or [5, 1]: of the neuron
    p_numbers,  # see triton/step.py
    p_rows,  # [5, C] float64
    p_y,
    p_v0,
    p_add,  # [T, N], timesteps add_stride apart: added to the spikes
    p_s,
    p_bits,  # the spikes as bits in memory order; 8 channels are adjacent
    p_v,
    p_partial,  # [blocks, 3, T, C]: sums of u, of its square and of the spikes
    T,
    N,
    M,
    C,
    H,
    W,
    inner,
    pooled_inner,
    y_stride,
    add_stride,
    s_stride,
    SOFT: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Normalise, run the neuron over all T, and pool or add; p_add and p_bits may be None."""
    dtype: tl.constexpr = p_numbers.dtype.element_ty
    out: tl.constexpr = p_s.dtype.element_ty
    block, column = _program(C, COLUMNS)
    o, _logical, inside = _tile(block, column, M, C, H, W, inner, ROWS, POOL is not None)
    scale, shift = _row(p_rows, SCALE, column, C, dtype), _row(p_rows, SHIFT, column, C, dtype)
    lam = _constant(p_constants, LAM, column, C, PER_CHANNEL)
    offset = _constant(p_constants, OFFSET, column, C, PER_CHANNEL)
    gain = _constant(p_constants, GAIN, column, C, PER_CHANNEL)
    theta = _constant(p_constants, THETA, column, C, PER_CHANNEL)
    v_reset = tl.load(p_numbers + V_RESET)
    v = initial_membrane(p_v0, p_numbers, o, inside, SOFT)
    for t in range(T):
        row = tl.cast(t, tl.int64)
        x = _read(p_y, row * y_stride + o, inside, dtype) * scale + shift
        u, doubt = step.membrane(v, x, lam, offset, gain)
        fired = (u >= theta) & inside
        v = step.reset(u, fired, theta, v_reset, SOFT)
        spike = tl.where(fired, 1.0, tl.where(inside, doubt, 0.0))
        own = spike
        if POOL is None:
            if p_add is not None:
                spike += _read(p_add, row * add_stride + o, inside, dtype)
            tl.store(p_s + row * s_stride + o, step.round_to(spike, out), mask=inside)
            if p_bits is not None:
                _store_bits(p_bits + row * (s_stride // 8), o, fired, inside, ROWS, COLUMNS)
        else:
            at, complete = _pooled(block, column, M, C, H, W, pooled_inner, ROWS)
            count = tl.sum(spike, axis=1)
            if POOL == "avg":
                s = count * 0.25
            else:
                s = tl.where(count > 1, 1.0, count)
            tl.store(p_s + row * s_stride + at, step.round_to(s, out), mask=complete)
            if p_bits is not None:
                _store_bits(p_bits + row * (s_stride // 8), at, count > 0, complete, ROWS, COLUMNS)
        if p_partial is not None:
            p_sum = p_partial + (tl.cast(block, tl.int64) * 3 * T + t) * C + column
            tl.store(p_sum, _columns(column, tl.where(inside, u, 0.0)), mask=column < C)
            tl.store(p_sum + T * C, _columns(column, tl.where(inside, u * u, 0.0)), mask=column < C)
            tl.store(p_sum + 2 * T * C, _columns(column, own), mask=column < C)
    if p_v is not None:
        tl.store(p_v + o, v, mask=inside)


@triton.jit
def norm_lif_bwd_kernel(
    p_constants,
    p_numbers,
    p_seed,
    p_p,
    p_rows,
    p_gx_sums,  # [2, C] float64: sums of gx and of gx (y - mean), for GRADIENT
    p_y,
    p_v0,
    p_g,
    p_gv,
    p_line,  # [2, T, C]: a and b of gu = a + b u
    p_dy,
    p_gv0,
    p_workspace,  # [programs, T, ROWS, windows, COLUMNS]: for u
    p_moved,  # [splits, 2, C]: for SUMS
    p_partial,  # [splits, 3, C]: gradients of tau (times tau^2), theta, width
    T,
    N,
    M,
    C,
    H,
    W,
    inner,
    pooled_inner,
    y_stride,
    g_stride,
    n,  # values per channel in the statistics
    splits,
    SOFT: tl.constexpr,
    RESET_GRADIENT: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    TEMPORAL: tl.constexpr,
    REPEATED: tl.constexpr,
    LEARNS_TAU: tl.constexpr,
    LEARNS_THETA: tl.constexpr,
    LEARNS_WIDTH: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    POOL: tl.constexpr,
    SUMS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """SUMS: compute the sums. GRADIENT: write dy; with BATCH the sums must be ready."""
    dtype: tl.constexpr = p_numbers.dtype.element_ty
    MEMBERS: tl.constexpr = 1 if POOL is None else 4
    SIZE: tl.constexpr = ROWS * MEMBERS * COLUMNS
    split, column = _program(C, COLUMNS)
    scale, shift = _row(p_rows, SCALE, column, C, dtype), _row(p_rows, SHIFT, column, C, dtype)
    mean = _row(p_rows, MEAN, column, C, dtype)
    centre, slope = mean, mean  # used only with GRADIENT and BATCH
    if GRADIENT and BATCH:
        rstd = tl.load(p_rows + RSTD * C + column, mask=column < C, other=0.0)
        a = tl.load(p_gx_sums + column, mask=column < C, other=0.0)
        q = tl.load(p_gx_sums + C + column, mask=column < C, other=0.0)
        count = tl.cast(n, tl.float64)
        centre = (a / count).to(dtype)[None, None, :]
        slope = (q * rstd * rstd / count).to(dtype)[None, None, :]
    lam = _constant(p_constants, LAM, column, C, PER_CHANNEL)
    offset = _constant(p_constants, OFFSET, column, C, PER_CHANNEL)
    gain = _constant(p_constants, GAIN, column, C, PER_CHANNEL)
    theta = _constant(p_constants, THETA, column, C, PER_CHANNEL)
    w = None
    if PARAMETRIC:
        w = _constant(p_constants, WIDTH, column, C, PER_CHANNEL)
    v_reset, rho = tl.load(p_numbers + V_RESET), tl.load(p_numbers + RHO)
    sum_a, sum_q = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    sum_tau, sum_theta, sum_width = sum_a, sum_a, sum_a
    program = tl.program_id(0).to(tl.int64)
    own_elements = (
        tl.arange(0, ROWS)[:, None, None] * (MEMBERS * COLUMNS)
        + tl.arange(0, MEMBERS)[None, :, None] * COLUMNS
        + tl.arange(0, COLUMNS)[None, None, :]
    )
    p_own = p_workspace + program * T * SIZE + own_elements
    if POOL is None:
        positions = M
    else:
        positions = M // (H * W) * ((H + 1) // 2) * ((W + 1) // 2)
    for block in range(split, tl.cdiv(positions, ROWS), splits):
        o, logical, inside = _tile(block, column, M, C, H, W, inner, ROWS, POOL is not None)
        zero = tl.zeros([ROWS, MEMBERS, COLUMNS], dtype)
        v = initial_membrane(p_v0, p_numbers, o, inside, SOFT)
        for t in range(T):
            x = _read(p_y, tl.cast(t, tl.int64) * y_stride + o, inside, dtype) * scale + shift
            u, _doubt = step.membrane(v, x, lam, offset, gain)
            v = step.reset(u, u >= theta, theta, v_reset, SOFT)
            tl.store(p_own + t * SIZE, u)
        tl.debug_barrier()
        c, gx_sum = zero, zero
        if p_gv is not None:
            c = tl.load(p_gv + o, mask=inside, other=0.0)
        for back in range(T):
            t = T - 1 - back
            row = tl.cast(t, tl.int64)
            u = tl.load(p_own + t * SIZE)
            fired = u >= theta
            base = step.derivative(u - theta, w, p_numbers + BASE, FAMILY)
            h, base = masked_derivative(
                base, u, theta, row * N + logical, p_seed, p_p, p_numbers, RESCALE, REPLACEMENT
            )
            g = zero
            if p_g is not None:
                if POOL is None:
                    g = _read(p_g, row * g_stride + o, inside, dtype)
                else:
                    at, complete = _pooled(block, column, M, C, H, W, pooled_inner, ROWS)
                    g_pooled = _read(p_g, row * g_stride + at, complete, dtype)[:, None, :]
                    if POOL == "avg":
                        g = tl.where(inside, g_pooled * 0.25, zero)
                    else:  # to the first element that fired, or to the first one if none did
                        k = tl.arange(0, 4)[None, :, None]
                        order = tl.where(fired & inside, k, 4)
                        first = tl.min(order, axis=1)[:, None, :]
                        g = tl.where(k == tl.where(first == 4, 0, first), g_pooled, zero)
            G = step.spike_gradient(g, c, u, theta, v_reset, rho, SOFT, RESET_GRADIENT)
            delta = step.membrane_gradient(G * h, c, fired, SOFT)
            if p_line is not None:
                line_a = tl.load(p_line + t * C + column, mask=column < C, other=0.0)
                line_b = tl.load(p_line + (T + t) * C + column, mask=column < C, other=0.0)
                delta += u * line_b[None, None, :] + line_a[None, None, :]
            delta = tl.where(inside, delta, 0.0)
            y_at = row * y_stride + o
            if SUMS and LEARNS_THETA:
                d = -(G * h)
                if SOFT:
                    d -= tl.where(fired, c, 0.0)
                sum_theta += _columns(column, tl.where(inside, d, 0.0))
            if SUMS and LEARNS_WIDTH:
                sum_width += _columns(column, tl.where(inside, -((u - theta) / w) * G * base, 0.0))
            if SUMS and LEARNS_TAU:
                v, rest = initial_membrane(p_v0, p_numbers, o, inside, SOFT), zero
                if t > 0:
                    before = tl.load(p_own + (t - 1) * SIZE)
                    v = step.reset(before, before >= theta, theta, v_reset, SOFT)
                if not SOFT:
                    rest += v_reset
                distance = v - rest
                if DECAY_INPUT:
                    distance -= _read(p_y, y_at, inside, dtype) * scale + shift
                sum_tau += _columns(column, delta * distance)
            gx = delta * gain
            if REPEATED:
                gx_sum += gx
            else:
                y = _read(p_y, y_at, inside, dtype)
                if SUMS:
                    sum_a += _columns(column, gx)
                    sum_q += _columns(column, gx * (y - mean))
                if GRADIENT:
                    if BATCH:
                        gx = (gx - centre) - (y - mean) * slope
                    tl.store(
                        p_dy + row * N + o,
                        step.round_to(gx * scale, p_dy.dtype.element_ty),
                        mask=inside,
                    )
            if TEMPORAL:
                c = tl.where(inside, delta * lam, 0.0)
            else:
                c = zero
        if REPEATED:
            y = _read(p_y, o, inside, dtype)
            if SUMS:
                sum_a += _columns(column, gx_sum)
                sum_q += _columns(column, gx_sum * (y - mean))
            if GRADIENT:
                if BATCH:
                    gx_sum = (gx_sum - centre) - (y - mean) * slope
                tl.store(
                    p_dy + o, step.round_to(gx_sum * scale, p_dy.dtype.element_ty), mask=inside
                )
        if GRADIENT and p_gv0 is not None:
            tl.store(p_gv0 + o, c, mask=inside)
        tl.debug_barrier()  # before the workspace is overwritten
    if SUMS:
        p_sum = p_moved + split * 2 * C + column
        tl.store(p_sum, sum_a, mask=column < C)
        tl.store(p_sum + C, sum_q, mask=column < C)
        if p_partial is not None:
            p_sum = p_partial + split * 3 * C + column
            tl.store(p_sum, sum_tau, mask=column < C)
            tl.store(p_sum + C, sum_theta, mask=column < C)
            tl.store(p_sum + 2 * C, sum_width, mask=column < C)
