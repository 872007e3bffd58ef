"""The pieces of a timestep as device functions in Triton, inlined into every kernel.

They are on a GPU what step.h, surrogate.h and saved.h are in C; the letters are those of
docs/methods.md, section 1. Flags are `tl.constexpr`. Every number comes from a tensor in the dtype
of the state, so float64 keeps its digits and a new value does not compile anything again. Kernels
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
FINE = tl.constexpr(2)  # 128 / reach, of the 8-bit distance
COARSE = tl.constexpr(3)  # reach / 128
BELOW = tl.constexpr(4)  # theta times this lies just below theta
BASE = tl.constexpr(5)  # a, b and c of the surrogate, see `Family.constants`
REPLACE = tl.constexpr(8)  # and of the one that stands in where it is dropped


# the surrogates that `_h` has a formula for
CASES = (Triangle, ATan, Rectangle, Sigmoid, SuperSpike, PiecewiseExponential, Erf, Dspike)


# ------------------------------------------------------------------------------------------ forward


@triton.jit
def membrane(v, x, lam, offset, gain):
    """u from v and x, in the order of operations that is part of the definition."""
    return (lam * v + offset) + gain * x


@triton.jit
def reset(u, fired, theta, v_reset, SOFT: tl.constexpr):
    """v from u."""
    if SOFT:
        v = tl.where(fired, u - theta, u)
    else:
        v = tl.where(fired, v_reset, u)
    return v


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in the dtype of a result, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:  # there `to` truncates
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(x != x, 0x7FC0, nearest).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


# ----------------------------------------------------------------------------------------- backward


@triton.jit
def _slope(x):
    """sig(x) sig(-x) for x <= 0"""
    e = tl.exp(x)
    return e / ((1 + e) * (1 + e))


@triton.jit
def _h(z, a, b, c, FAMILY: tl.constexpr):
    """The formulas of surrogate.py with torch's order of operations (b / y is 1 / y * b there)."""
    size = tl.abs(z)
    if FAMILY == "Triangle":
        left = c - a * size
        h = tl.where(left < 0, 0.0, left) * b
    elif FAMILY == "ATan":
        h = 1 / (1 + (z * a) * (z * a)) * b
    elif FAMILY == "Rectangle":
        h = tl.where(size < a, b, 0.0)
    elif FAMILY == "Sigmoid":
        h = _slope(size * a) * b
    elif FAMILY == "SuperSpike":
        h = 1 / ((1 + a * size) * (1 + a * size)) * b
    elif FAMILY == "PiecewiseExponential":
        h = tl.exp(size * a) * b
    elif FAMILY == "Erf":
        h = tl.exp(-((z * a) * (z * a))) * b
    elif FAMILY == "Dspike":
        h = tl.where(size < 0.5, _slope(size * a) * b, 0.0)
    else:
        tl.static_assert(False, "a surrogate without a formula in Triton")
    return h


@triton.jit
def derivative(z, w, p_formula, FAMILY: tl.constexpr):
    """h(z), or with a width w h(z / w) / w. p_formula: points to the constants of the surrogate."""
    a, b, c = tl.load(p_formula), tl.load(p_formula + 1), tl.load(p_formula + 2)
    if w is None:
        h = _h(z, a, b, c, FAMILY)
    else:
        h = _h(z / w, a, b, c, FAMILY) / w
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
    """The hash of mask.py: which of these logical positions (int64) are dropped.

    seed: int64; limit: from `cut`.
    """
    both = index ^ seed  # what the hash takes of either half
    lo, hi = both.to(tl.uint32), (both >> 32).to(tl.uint32)
    return (_lowbias32(_lowbias32(lo) ^ hi) >> 8) < limit


@triton.jit
def cut(p):
    """round(p 2^24) as uint32, half to even; p in float64."""
    return ((p * 16777216.0 + 4503599627370496.0) - 4503599627370496.0).to(tl.uint32)


@triton.jit
def masked(own, u, theta, gone, keep, p_formula, RESCALE: tl.constexpr, FAMILY: tl.constexpr):
    """(h, the part of it that belongs to the base) from own, the h of the base.

    FAMILY: of the surrogate that replaces it where it is dropped, or None.
    """
    if RESCALE:
        own = own / keep
    own = tl.where(gone, 0.0, own)
    full = own
    if FAMILY is not None:
        full = tl.where(gone, derivative(u - theta, None, p_formula, FAMILY), own)
    return full, own


@triton.jit
def arriving(g, c, u, theta, v_reset, rho, SOFT: tl.constexpr, ATTACHED: tl.constexpr):
    """G, the total gradient of s. ATTACHED: rho is not 0. With SOFT, u is not used."""
    G = g
    if ATTACHED:
        if SOFT:
            G = g - (rho * c) * theta
        else:
            G = g + (rho * c) * (v_reset - u)
    return G


@triton.jit
def total(Gh, c, fired, SOFT: tl.constexpr):
    """delta = dL/du without the direct gradient of u. With SOFT, fired is not used."""
    if SOFT:
        delta = Gh + c
    else:
        delta = Gh + tl.where(fired, 0.0, c)
    return delta


# ----------------------------------------------------------- codes of the membrane: see saved.py


@triton.jit
def code_bfloat16(z, fired):
    """z as a bfloat16 whose sign says whether the neuron fired."""
    bits = narrow(z, tl.bfloat16).to(tl.int16, bitcast=True) & 0x7FFF
    return tl.where(fired, bits, bits | -0x8000).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def code_8bit(z, fired, fine):
    """z in steps of 1 / fine, counted from 128: 128 and above where the neuron fired."""
    k = z * fine + 128
    k = tl.where(k > 0, k, 0.0)
    most = tl.where(fired, 255.0, 127.0).to(k.dtype)
    return tl.where(k < most, k, most).to(tl.int32).to(tl.uint8)


@triton.jit
def of_bfloat16(code, theta, below):
    """(u, whether it fired)"""
    fired = code.to(tl.int16, bitcast=True) >= 0
    return _beside(code.to(theta.dtype), fired, theta, below), fired


@triton.jit
def of_8bit(code, w, theta, below, coarse):
    """(u, whether it fired)"""
    z = (code.to(theta.dtype) - 127.5) * coarse
    fired = z > 0
    if w is not None:
        z = z * w
    return _beside(z, fired, theta, below), fired


@triton.jit
def _beside(z, fired, theta, below):
    """u = z + theta, on its side of theta even if z is lost against it."""
    u, most = z + theta, theta * below
    return tl.where((most < u) & (fired == 0), most, u)
