"""The steps of the recursion as device functions in Triton, inlined into every kernel.

They are the counterparts of step.h, surrogate.h and saved.h in C, in the notation of
docs/methods.md, section 1. Flags are `tl.constexpr`. All numbers come from a tensor in the dtype of
the state, so float64 keeps its precision and a new value does not cause a recompilation. Kernels
that use these functions must be launched with `enable_fp_fusion=False`: a fused multiply-add would
change membranes, and with them spikes.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from ...surrogate import (
    ATan,
    Dspike,
    Erf,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Triangle,
)

# Triton's interpreter, which runs kernels on the CPU for tests
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# indices into the tensor of numbers
V_RESET = tl.constexpr(0)
RHO = tl.constexpr(1)
PER_UNIT = tl.constexpr(2)  # 1 / unit of the 8-bit code
UNIT = tl.constexpr(3)
BELOW = tl.constexpr(4)  # theta times this is just below theta
BASE = tl.constexpr(5)  # a, b and c of the surrogate; see `Family.constants`
REPLACE = tl.constexpr(8)  # a, b and c of the surrogate that replaces it where it is dropped


# the surrogates that `_formula` has a formula for
CASES = (Triangle, ATan, Rectangle, Sigmoid, SuperSpike, PiecewiseExponential, Erf, Dspike)


ONE = tl.constexpr(0x3F800000)  # the bits of 1.0


# ------------------------------------------------------------------------------------------ forward


@triton.jit
def membrane(v, x, lam, offset, gain):
    """(u from v and x, its doubt: 0 where u is finite, NaN where it is not, as u is then).

    The order of operations is part of the definition.
    """
    u = (lam * v + offset) + gain * x
    doubt = u - u
    return u + doubt, doubt


@triton.jit
def reset(u, fired, theta, v_reset, SOFT: tl.constexpr):
    """v from u."""
    if SOFT:
        v = tl.where(fired, u - theta, u)
    else:
        v = tl.where(fired, v_reset, u)
    return v


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """x in another dtype, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter's `to` truncates
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(x != x, 0x7FC0, nearest).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


# ----------------------------------------------------------------------------------------- backward


@triton.jit
def _sigmoid_slope(x):
    """sig(x) sig(-x) for x <= 0"""
    e = tl.exp(x)
    return e / ((1 + e) * (1 + e))


@triton.jit
def _formula(z, a, b, c, FAMILY: tl.constexpr):
    """The formulas of surrogate.py in torch's order of operations, which is 1 / y * b for b / y."""
    size = tl.abs(z)
    if FAMILY == "Triangle":
        left = c - a * size
        h = tl.where(left < 0, 0.0, left) * b
    elif FAMILY == "ATan":
        h = 1 / (1 + (z * a) * (z * a)) * b
    elif FAMILY == "Rectangle":
        h = tl.where(size < a, b, 0.0)
    elif FAMILY == "Sigmoid":
        h = _sigmoid_slope(size * a) * b
    elif FAMILY == "SuperSpike":
        h = 1 / ((1 + a * size) * (1 + a * size)) * b
    elif FAMILY == "PiecewiseExponential":
        h = tl.exp(size * a) * b
    elif FAMILY == "Erf":
        h = tl.exp(-((z * a) * (z * a))) * b
    elif FAMILY == "Dspike":
        h = tl.where(size < 0.5, _sigmoid_slope(size * a) * b, 0.0)
    else:
        tl.static_assert(False, "a surrogate without a formula in Triton")
    return h


@triton.jit
def derivative(z, w, p_formula, FAMILY: tl.constexpr):
    """h(z), or h(z / w) / w with a width w. p_formula: pointer to the surrogate's constants."""
    a, b, c = tl.load(p_formula), tl.load(p_formula + 1), tl.load(p_formula + 2)
    if w is None:
        h = _formula(z, a, b, c, FAMILY)
    else:
        h = _formula(z / w, a, b, c, FAMILY) / w
    return h


@triton.jit
def _lowbias32(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def dropped(index, seed, limit):
    """Which of these logical positions (int64) are dropped, by the hash of mask.py.

    seed: int64; limit: from `drop_limit`.
    """
    both = index ^ seed  # the hash uses only this combination of the two
    lo, hi = both.to(tl.uint32), (both >> 32).to(tl.uint32)
    return (_lowbias32(_lowbias32(lo) ^ hi) >> 8) < limit


@triton.jit
def drop_limit(p):
    """round(p 2^24) as uint32, half to even; p is float64."""
    return ((p * 16777216.0 + 4503599627370496.0) - 4503599627370496.0).to(tl.uint32)


@triton.jit
def masked(h_base, u, theta, drop, p_keep, p_formula, RESCALE: tl.constexpr, FAMILY: tl.constexpr):
    """(h, the part of it from the base) from h_base, the derivative of the base.

    p_keep: 1 - p. FAMILY: the surrogate that replaces dropped elements, or None.
    """
    if RESCALE:
        h_base = h_base / p_keep
    h_base = tl.where(drop, 0.0, h_base)
    full = h_base
    if FAMILY is not None:
        full = tl.where(drop, derivative(u - theta, None, p_formula, FAMILY), h_base)
    return full, h_base


@triton.jit
def spike_gradient(g, c, u, theta, v_reset, rho, SOFT: tl.constexpr, RESET_GRADIENT: tl.constexpr):
    """G, the total gradient of s. RESET_GRADIENT: rho is nonzero. With SOFT, u is not used."""
    G = g
    if RESET_GRADIENT:
        if SOFT:
            G = g - (rho * c) * theta
        else:
            G = g + (rho * c) * (v_reset - u)
    return G


@triton.jit
def membrane_gradient(Gh, c, fired, SOFT: tl.constexpr):
    """delta = dL/du without the direct gradient of u. With SOFT, fired is not used."""
    if SOFT:
        delta = Gh + c
    else:
        delta = Gh + tl.where(fired, 0.0, c)
    return delta


# -------------------------------------------------------------- codes of the membrane: see saved.py


@triton.jit
def encode_bfloat16(z, fired):
    """z as a bfloat16 whose sign says whether the neuron fired."""
    bits = round_to(z, tl.bfloat16).to(tl.int16, bitcast=True) & 0x7FFF
    return tl.where(fired, bits, bits | -0x8000).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def encode_8bit(z, fired, per_unit, FORM: tl.constexpr):
    """The code of z; at least 128 where the neuron fired."""
    size = tl.abs(z) * per_unit
    if FORM == "uniform":
        k = tl.where(size < 127, size, 127.0).to(tl.int32)
    else:
        bits = (size + 1).to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        k = ((bits - ONE) >> 12) * 3 >> 9
        k = tl.where(k < 127, k, 127)
    return tl.where(fired, 128 + k, 127 - k).to(tl.uint8)


@triton.jit
def decode_bfloat16(code, theta, below):
    """(u, whether it fired)"""
    fired = code.to(tl.int16, bitcast=True) >= 0
    return _on_own_side(code.to(theta.dtype), fired, theta, below), fired


@triton.jit
def decode_8bit(code, w, theta, below, unit, FORM: tl.constexpr):
    """(u, whether it fired)"""
    odd = 2 * code.to(tl.int32) - 255
    fired = odd > 0
    if FORM == "uniform":
        z = odd.to(theta.dtype) * 0.5 * unit
    else:
        size = tl.abs(odd)
        bits = ONE + size * (0x800000 // 24) + tl.where(size == 255, 16 << 23, 0)
        y = bits.to(tl.float32, bitcast=True).to(theta.dtype)
        z = tl.where(fired, y - 1, 1 - y) * unit
    if w is not None:
        z = z * w
    return _on_own_side(z, fired, theta, below), fired


@triton.jit
def _on_own_side(z, fired, theta, below):
    """u = z + theta, on the correct side of theta even if rounding absorbs z."""
    u, limit = z + theta, theta * below
    return tl.where((limit < u) & (fired == 0), limit, u)
