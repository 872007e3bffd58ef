"""The recursion in Triton: one kernel per direction over all T; `lif.py` launches them.

A program iterates over time with a block of elements whose membranes stay in registers. Blocks
follow the memory order of x, or are tiles of rows and channels if sums per channel are needed. Sums
are computed block by block in float64 and then over the blocks, so they are bit-identical every
time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import step
from .step import BASE, BELOW, PER_UNIT, REPLACE, RHO, UNIT, V_RESET

LAM, OFFSET, GAIN, THETA, WIDTH = (tl.constexpr(row) for row in range(5))


@triton.jit
def _elements(N, C, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(offsets of this program's elements in a timestep, which exist, its block, its channels).

    COLUMNS = 0: ROWS adjacent elements. Otherwise a tile [ROWS, COLUMNS] with a channel per column.
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
def constants(p_constants, channel, C, PER_CHANNEL: tl.constexpr):
    """(lam, offset, gain, theta)"""
    lam = _constant(p_constants, LAM, channel, C, PER_CHANNEL)
    offset = _constant(p_constants, OFFSET, channel, C, PER_CHANNEL)
    gain = _constant(p_constants, GAIN, channel, C, PER_CHANNEL)
    theta = _constant(p_constants, THETA, channel, C, PER_CHANNEL)
    return lam, offset, gain, theta


@triton.jit
def width_in_use(p_constants, channel, C, PER_CHANNEL: tl.constexpr, PARAMETRIC: tl.constexpr):
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
def _logical(o, C, area, CHANNELS_LAST: tl.constexpr):
    """The positions in C order, which the mask uses, of elements at these offsets in memory."""
    if CHANNELS_LAST:
        o = o // (C * area) * (C * area) + o % C * area + o // C % area
    return o


@triton.jit
def masked_derivative(
    h_base,
    u,
    theta,
    index,
    p_seed,
    p_p,
    p_numbers,
    RESCALE: tl.constexpr,
    REPLACEMENT: tl.constexpr,
):
    """`step.masked` at these logical positions of [T, B, ...]; h_base twice if there is no mask."""
    if p_seed is None:
        h = h_base
    else:
        p = tl.load(p_p).to(tl.float64)
        drop = step.dropped(index, tl.load(p_seed), step.drop_limit(p))
        h, h_base = step.masked(
            h_base,
            u,
            theta,
            drop,
            (1 - p).to(h_base.dtype),
            p_numbers + REPLACE,
            RESCALE,
            REPLACEMENT,
        )
    return h, h_base


@triton.jit
def _decode(p_saved, at, inside, w, theta, p_numbers, FORM: tl.constexpr):
    """(u as the backward pass sees it, whether it fired)"""
    code = tl.load(p_saved + at, mask=inside, other=0.0)
    if FORM == "bfloat16":
        u, fired = step.decode_bfloat16(code, theta, tl.load(p_numbers + BELOW))
    elif FORM == "uniform" or FORM == "logarithmic":
        u, fired = step.decode_8bit(
            code, w, theta, tl.load(p_numbers + BELOW), tl.load(p_numbers + UNIT), FORM
        )
    else:
        u, fired = code, code >= theta
    return u, fired


@triton.jit
def encode(
    p_saved,
    at,
    inside,
    u,
    fired,
    w,
    theta,
    p_numbers,
    FORM: tl.constexpr,
    DECODES: tl.constexpr,
):
    """Stores the code of u in the forms that have one; returns u, with DECODES as backward sees it.

    DECODES: whether the caller needs the latter.
    """
    decoded = u
    if FORM == "bfloat16":
        code = step.encode_bfloat16(u - theta, fired)
        tl.store(p_saved + at, code, mask=inside)
        if DECODES:
            decoded, _ = step.decode_bfloat16(code, theta, tl.load(p_numbers + BELOW))
    elif FORM == "uniform" or FORM == "logarithmic":
        z = u - theta
        if w is not None:
            z = z / w
        code = step.encode_8bit(z, fired, tl.load(p_numbers + PER_UNIT), FORM)
        tl.store(p_saved + at, code, mask=inside)
        if DECODES:
            decoded, _ = step.decode_8bit(
                code, w, theta, tl.load(p_numbers + BELOW), tl.load(p_numbers + UNIT), FORM
            )
    return decoded


@triton.jit
def step_back(
    t,
    o,
    inside,
    index,
    g,
    c,
    d_tau,
    d_theta,
    d_width,
    lam,
    gain,
    theta,
    w,
    p_numbers,
    p_seed,
    p_p,
    p_saved,
    p_x,
    p_v0,
    p_gu,
    p_line,
    T,
    N,
    C,
    channel,
    x_stride,
    gu_stride,
    SOFT: tl.constexpr,
    RESET_GRADIENT: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    TEMPORAL: tl.constexpr,
    LEARNS_TAU: tl.constexpr,
    LEARNS_THETA: tl.constexpr,
    LEARNS_WIDTH: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    FORM: tl.constexpr,
):
    """Step t of the backward pass for the elements at o, which g reaches.

    index: their positions for the mask; c: the gradient of v. Returns the gradient of x, c of the
    step before, and the sums of the learned constants.
    """
    v_reset, rho = tl.load(p_numbers + V_RESET), tl.load(p_numbers + RHO)
    zero = tl.zeros(o.shape, p_numbers.dtype.element_ty)
    row = tl.cast(t, tl.int64)
    at = row * N + o
    if FORM == "1bit":  # Rectangle with the soft reset: h alone is enough
        byte = tl.load(p_saved + row * tl.cdiv(N, 8) + o // 8, mask=inside, other=0).to(tl.int32)
        u, fired = zero, inside
        h_base = tl.where(
            (byte >> (o % 8).to(tl.int32)) & 1 != 0, tl.load(p_numbers + BASE + 1), zero
        )
    else:
        u, fired = _decode(p_saved, at, inside, w, theta, p_numbers, FORM)
        h_base = step.derivative(u - theta, w, p_numbers + BASE, FAMILY)
    h, h_base = masked_derivative(
        h_base, u, theta, index, p_seed, p_p, p_numbers, RESCALE, REPLACEMENT
    )
    G = step.spike_gradient(g, c, u, theta, v_reset, rho, SOFT, RESET_GRADIENT)
    delta = step.membrane_gradient(G * h, c, fired, SOFT)
    if p_gu is not None:
        delta += tl.load(p_gu + row * gu_stride + o, mask=inside, other=0.0)
    if p_line is not None:
        delta += u * tl.load(p_line + (T + t) * C + channel) + tl.load(p_line + t * C + channel)
    if LEARNS_THETA:
        d_theta -= G * h
        if SOFT:
            d_theta -= tl.where(fired, c, 0.0)
    if LEARNS_WIDTH:
        d_width -= ((u - theta) / w) * G * h_base
    if LEARNS_TAU:
        v, rest = initial_membrane(p_v0, p_numbers, o, inside, SOFT), zero
        if t > 0:
            before, fired_before = _decode(p_saved, at - N, inside, w, theta, p_numbers, FORM)
            v = step.reset(before, fired_before, theta, v_reset, SOFT)
        if not SOFT:
            rest += v_reset
        distance = v - rest
        if DECAY_INPUT:
            distance -= tl.load(p_x + row * x_stride + o, mask=inside, other=0.0).to(zero.dtype)
        d_tau += delta * distance
    if TEMPORAL:
        c = delta * lam
    else:
        c = zero
    return delta * gain, c, d_tau, d_theta, d_width


@triton.jit
def _store_bits(p_bits, row, N, block, marks, ROWS: tl.constexpr):
    """Store the marks of a block of a timestep as bits; p_bits: [T, bytes of a timestep]."""
    size = tl.cdiv(N, 8)
    bits = marks.to(tl.int32).reshape(ROWS // 8, 8) << tl.arange(0, 8)[None, :]
    byte = block * (ROWS // 8) + tl.arange(0, ROWS // 8)
    tl.store(p_bits + row * size + byte, tl.sum(bits, axis=1).to(tl.uint8), mask=byte < size)


@triton.jit
def _store_sum(p_sum, x, inside, column, width):
    """Store the sum of x over the block, per channel if it is a tile, in float64."""
    total = tl.sum(tl.where(inside, x, 0.0).to(tl.float64), axis=0)
    tl.store(p_sum, total, mask=column < width)


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
    p_saved,  # [T, N] codes, or [T, N / 8] bits
    p_active,  # [T, N] bytes
    p_bits,  # [T, N / 8], only with COLUMNS == 0
    p_partial,  # [blocks, 2, T, C]: sums of u and its square
    T,
    N,
    C,
    inner,
    area,
    x_stride,
    SOFT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PARAMETRIC: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    FORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Element i of a timestep has channel i // inner % C. Outputs that are not needed are None."""
    o, inside, block, column = _elements(N, C, inner, ROWS, COLUMNS)
    channel, logical = o // inner % C, _logical(o, C, area, CHANNELS_LAST)
    lam, offset, gain, theta = constants(p_constants, channel, C, PER_CHANNEL)
    w = width_in_use(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    v_reset = tl.load(p_numbers + V_RESET)
    v = initial_membrane(p_v0, p_numbers, o, inside, SOFT)
    for t in range(T):
        row = tl.cast(t, tl.int64)
        at = row * N + o
        x = tl.load(p_x + row * x_stride + o, mask=inside, other=0.0).to(v.dtype)
        u, doubt = step.membrane(v, x, lam, offset, gain)
        fired = u >= theta
        v = step.reset(u, fired, theta, v_reset, SOFT)
        if p_s is not None:
            s = step.round_to(tl.where(fired, 1.0, doubt), p_s.dtype.element_ty)
            tl.store(p_s + at, s, mask=inside)
        if p_bits is not None:
            _store_bits(p_bits, row, N, block, fired & inside, ROWS)
        if p_u is not None:
            tl.store(p_u + at, u, mask=inside)
        decoded = encode(
            p_saved, at, inside, u, fired, w, theta, p_numbers, FORM, p_active is not None
        )
        if FORM == "1bit":
            h = step.derivative(u - theta, None, p_numbers + BASE, FAMILY)
            _store_bits(p_saved, row, N, block, (h != 0) & inside, ROWS)
        if p_active is not None:
            h_base = step.derivative(decoded - theta, w, p_numbers + BASE, FAMILY)
            h, _ = masked_derivative(
                h_base,
                decoded,
                theta,
                row * N + logical,
                p_seed,
                p_p,
                p_numbers,
                RESCALE,
                REPLACEMENT,
            )
            tl.store(p_active + at, (h != 0).to(tl.uint8), mask=inside)
        if p_partial is not None:
            p_sum = p_partial + (block * 2 * T + t) * C + column
            _store_sum(p_sum, u, inside, column, C)
            _store_sum(p_sum + T * C, u * u, inside, column, C)
    if p_v is not None:
        tl.store(p_v + o, v, mask=inside)


@triton.jit
def lif_bwd_kernel(
    p_constants,
    p_numbers,
    p_seed,
    p_p,
    p_saved,  # [T, N] membranes or codes, or [T, N / 8] bits
    p_x,
    p_v0,
    p_g,
    p_gu,
    p_gv,
    p_line,  # [2, T, C]: a and b of gu = a + b u
    p_gx,
    p_gv0,
    p_partial,  # [blocks, 3, C] or [blocks, 3, 1]: gradients of tau (times tau^2), theta, width
    T,
    N,
    C,
    inner,
    area,
    x_stride,
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
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """REPEATED: the gradient of x is summed over T."""
    o, inside, block, column = _elements(N, C, inner, ROWS, COLUMNS)
    channel, logical = o // inner % C, _logical(o, C, area, CHANNELS_LAST)
    lam, _, gain, theta = constants(p_constants, channel, C, PER_CHANNEL)
    w = width_in_use(p_constants, channel, C, PER_CHANNEL, PARAMETRIC)
    zero = tl.zeros(o.shape, p_numbers.dtype.element_ty)
    c, gx_sum, d_tau, d_theta, d_width = zero, zero, zero, zero, zero
    if p_gv is not None:
        c = tl.load(p_gv + o, mask=inside, other=0.0)
    for steps in range(T):
        t = T - 1 - steps
        row = tl.cast(t, tl.int64)
        g = zero
        if p_g is not None:
            g = tl.load(p_g + row * g_stride + o, mask=inside, other=0.0).to(zero.dtype)
        gx, c, d_tau, d_theta, d_width = step_back(
            t, o, inside, row * N + logical, g, c, d_tau, d_theta, d_width, lam, gain, theta, w,
            p_numbers, p_seed, p_p, p_saved, p_x, p_v0, p_gu, p_line, T, N, C, channel,
            x_stride, gu_stride, SOFT, RESET_GRADIENT, DECAY_INPUT, TEMPORAL, LEARNS_TAU,
            LEARNS_THETA, LEARNS_WIDTH, RESCALE, FAMILY, REPLACEMENT, FORM,
        )  # fmt: skip
        if p_gx is not None:
            if REPEATED:
                gx_sum += gx
            else:
                at = row * N + o
                tl.store(p_gx + at, step.round_to(gx, p_gx.dtype.element_ty), mask=inside)
    if p_gv0 is not None:
        tl.store(p_gv0 + o, c, mask=inside)
    if REPEATED and p_gx is not None:
        tl.store(p_gx + o, step.round_to(gx_sum, p_gx.dtype.element_ty), mask=inside)
    if p_partial is not None:
        width = C if PER_CHANNEL else 1
        p_sum = p_partial + block * 3 * width + column
        if LEARNS_TAU:
            _store_sum(p_sum, d_tau, inside, column, width)
        if LEARNS_THETA:
            _store_sum(p_sum + width, d_theta, inside, column, width)
        if LEARNS_WIDTH:
            _store_sum(p_sum + 2 * width, d_width, inside, column, width)


@triton.jit
def unpack_kernel(p_bits, p_x, N, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write N bits as zeros and ones in the dtype of x."""
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    byte = tl.load(p_bits + at // 8, mask=at < N, other=0).to(tl.int32)
    tl.store(p_x + at, ((byte >> (at % 8).to(tl.int32)) & 1).to(p_x.dtype.element_ty), mask=at < N)
