"""The timestep of a neuron with equations of its own, in Triton.

A recording (kernel/own) arrives as tuples of constants, which the kernels below take apart while
they are compiled, so no text is written. A program is a tuple: the leaves that it needs, their
number, its operations, their number, and the places of the results. An operation is a name and the
places of its inputs among the values so far, which begin with the leaves.
"""

# ruff: noqa: RUF005  (kernels have no unpacking)
# mypy: disable-error-code="assignment,var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from . import step

RHO = tl.constexpr(0)  # places in the tensor of numbers
KEEP = tl.constexpr(1)  # 1 - p
BASE = tl.constexpr(2)  # a, b and c of the surrogates
REPLACEMENT = tl.constexpr(5)


@triton.jit
def _ratio(a, b):
    """a / b, rounded to nearest."""
    ratio = a / b
    if ratio.dtype == tl.float32:
        ratio = tl.div_rn(ratio * 0 + a, ratio * 0 + b)
    return ratio


@triton.jit
def _one(OP: tl.constexpr, a, p_numbers, FAMILY: tl.constexpr, OTHER: tl.constexpr):
    """An operation with one input."""
    if OP == "neg":
        y = -a
    elif OP == "exp":
        y = tl.exp(a)
    elif OP == "log":
        y = tl.log(a)
    elif OP == "sqrt":
        y = tl.sqrt_rn(a) if a.dtype == tl.float32 else tl.sqrt(a)
    elif OP == "rsqrt":
        y = _ratio(1.0, tl.sqrt_rn(a) if a.dtype == tl.float32 else tl.sqrt(a))
    elif OP == "sin":
        y = tl.sin(a)
    elif OP == "cos":
        y = tl.cos(a)
    elif OP == "sigmoid":
        y = _ratio(1.0, 1 + tl.exp(-a))
    elif OP == "abs":
        y = tl.abs(a)
    elif OP == "sign":
        y = tl.where(a > 0, 1.0, tl.where(a < 0, -1.0, a * 0))
    elif OP == "floor":
        y = tl.floor(a)
    elif OP == "detach":
        y = a
    elif OP == "real":
        y = tl.where(a, 1.0, 0.0).to(p_numbers.dtype.element_ty)
    elif OP == "not":
        y = a == 0
    elif OP == "base":
        y = step.derivative(a, None, p_numbers + BASE, FAMILY)
    elif OP == "replacement":
        y = step.derivative(a, None, p_numbers + REPLACEMENT, OTHER)
    else:
        tl.static_assert(False, "an operation without a rule in Triton")
    return y


@triton.jit
def _two(OP: tl.constexpr, a, b):
    """An operation with two inputs."""
    if OP == "add":
        y = a + b
    elif OP == "sub":
        y = a - b
    elif OP == "mul":
        y = a * b
    elif OP == "div":
        y = _ratio(a, b)
    elif OP == "maximum":
        y = tl.where((a > b) | (a != a), a, b)
    elif OP == "minimum":
        y = tl.where((a < b) | (a != a), a, b)
    elif OP == "lt":
        y = a < b
    elif OP == "le":
        y = a <= b
    elif OP == "gt":
        y = a > b
    elif OP == "ge":
        y = a >= b
    elif OP == "eq":
        y = a == b
    elif OP == "ne":
        y = a != b
    elif OP == "and":
        y = a & b
    elif OP == "or":
        y = a | b
    elif OP == "xor":
        y = a ^ b
    elif OP == "spike":
        y = tl.where(a >= b, 1.0, 0.0).to(a.dtype) + (a - a)
    else:
        tl.static_assert(False, "an operation without a rule in Triton")
    return y


@triton.jit
def _coefficients(
    p_table, channel, C, zero, VARIES: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr
):
    """The coefficients, each for all elements of this program."""
    out = ()
    for i in tl.static_range(N):
        if VARIES[i]:
            value = tl.load(p_table + i * C + channel)
        elif STRIDE:
            value = tl.load(p_table + i * C)
        else:
            value = tl.load(p_table + i)
        out = out + (zero + value,)
    return out


@triton.jit
def _rest(p_v0, coefficients, o, inside, N, REST: tl.constexpr, STATES: tl.constexpr):
    """The first states."""
    out = ()
    for i in tl.static_range(STATES):
        if p_v0 is not None:
            value = tl.load(p_v0 + i * N + o, mask=inside, other=0.0)
        else:
            value = coefficients[REST[i]]
        out = out + (value,)
    return out


@triton.jit
def _pick(values, WHICH: tl.constexpr, N: tl.constexpr, zero):
    """Some of the values; zero for the place -1."""
    out = ()
    for i in tl.static_range(N):
        if WHICH[i] < 0:
            value = zero
        else:
            value = values[WHICH[i]]
        out = out + (value,)
    return out


@triton.jit
def _leaves(
    coefficients,
    states,
    kept,
    x,
    c,
    g,
    gu,
    h,
    own,
    rho,
    zero,
    LEAVES: tl.constexpr,
    N: tl.constexpr,
):
    """The leaves of a program, each for all elements."""
    out = ()
    for i in tl.static_range(N):
        if LEAVES[i][0] == "coefficient":
            value = coefficients[LEAVES[i][1]]
        elif LEAVES[i][0] == "number":
            value = zero + LEAVES[i][1]
        elif LEAVES[i][0] == "state":
            value = states[LEAVES[i][1]]
        elif LEAVES[i][0] == "kept":
            value = kept[LEAVES[i][1]]
        elif LEAVES[i][0] == "c":
            value = c[LEAVES[i][1]]
        elif LEAVES[i][0] == "x":
            value = x
        elif LEAVES[i][0] == "g":
            value = g
        elif LEAVES[i][0] == "gu":
            value = gu
        elif LEAVES[i][0] == "h":
            value = h
        elif LEAVES[i][0] == "own":
            value = own
        else:
            value = zero + rho
        out = out + (value,)
    return out


@triton.jit
def _computed(
    coefficients,
    states,
    kept,
    x,
    c,
    g,
    gu,
    h,
    own,
    rho,
    zero,
    p_numbers,
    PROGRAM: tl.constexpr,
    FAMILY: tl.constexpr,
    OTHER: tl.constexpr,
):
    """The leaves of a program, and the values of its operations."""
    values = _leaves(
        coefficients, states, kept, x, c, g, gu, h, own, rho, zero, PROGRAM[0], PROGRAM[1]
    )
    OPERATIONS: tl.constexpr = PROGRAM[2]
    for i in tl.static_range(PROGRAM[3]):
        if OPERATIONS[i][0] == "where":
            y = tl.where(
                values[OPERATIONS[i][1]], values[OPERATIONS[i][2]], values[OPERATIONS[i][3]]
            )
        elif OPERATIONS[i][2] < 0:
            y = _one(OPERATIONS[i][0], values[OPERATIONS[i][1]], p_numbers, FAMILY, OTHER)
        else:
            y = _two(OPERATIONS[i][0], values[OPERATIONS[i][1]], values[OPERATIONS[i][2]])
        values = values + (y,)
    return values


@triton.jit
def _row(p, at, inside, zero):
    """A row in the dtype of the states, or zeros."""
    row = zero
    if p is not None:
        row = tl.load(p + at, mask=inside, other=0.0).to(zero.dtype)
    return row


@triton.jit
def _saved(p_kept, t, o, inside, T, wide, SLOTS: tl.constexpr):
    out = ()
    for i in tl.static_range(SLOTS):
        out = out + (tl.load(p_kept + wide * (i * T + t) + o, mask=inside, other=0.0),)
    return out


@triton.jit
def own_forward(
    p_table,  # [coefficients, C] or [coefficients, 1]
    p_numbers,
    p_x,  # [T, N]
    p_v0,  # [states, N]
    p_s,
    p_u,
    p_v,
    p_kept,  # [SLOTS, T, N]
    T,
    N,
    C,
    area,
    VARIES: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    STRIDE: tl.constexpr,
    REST: tl.constexpr,
    STATES: tl.constexpr,
    PROGRAM: tl.constexpr,  # results: u, the spike, what is saved, the states after
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All timesteps of ROWS neurons."""
    RESULTS: tl.constexpr = PROGRAM[4]
    o = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, wide = o < N, o * 0 + N  # in 64 bits
    zero = tl.zeros((ROWS,), p_numbers.dtype.element_ty)
    k = _coefficients(p_table, o // area % C, C, zero, VARIES, COEFFICIENTS, STRIDE)
    states = _rest(p_v0, k, o, inside, N, REST, STATES)
    for t in range(T):
        at = wide * t + o
        x = _row(p_x, at, inside, zero)
        values = _computed(
            k, states, (), x, (), zero, zero, zero, zero, 0, zero, p_numbers, PROGRAM, None, None
        )
        spike = values[RESULTS[1]]
        tl.store(p_s + at, step.round_to(spike, p_s.dtype.element_ty), mask=inside)
        if p_u is not None:
            tl.store(p_u + at, values[RESULTS[0]], mask=inside)
        for i in tl.static_range(SLOTS):
            tl.store(p_kept + wide * (i * T + t) + o, values[RESULTS[2][i]], mask=inside)
        states = _pick(values, RESULTS[3], STATES, zero)
    if p_v is not None:
        for i in tl.static_range(STATES):
            tl.store(p_v + i * N + o, states[i], mask=inside)


@triton.jit
def _states_before(
    earlier, later, first, k, zero, p_numbers, BEFORE: tl.constexpr, STATES: tl.constexpr
):
    """The states before a timestep: from what was saved of the one before, or the first ones."""
    values = _computed(
        k, (), earlier, zero, (), zero, zero, zero, zero, 0, zero, p_numbers, BEFORE, None, None
    )
    found = _pick(values, BEFORE[4], STATES, zero)
    states = ()
    for i in tl.static_range(STATES):
        states = states + (tl.where(later, found[i], first[i]),)
    return states


@triton.jit
def _masked(
    k,
    states,
    kept,
    x,
    at,
    zero,
    p_seed,
    p_p,
    p_numbers,
    SLOPES: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    OTHER: tl.constexpr,
):
    """The masked surrogate derivative, and the part of it from the base surrogate."""
    values = _computed(
        k, states, kept, x, (), zero, zero, zero, zero, 0, zero, p_numbers, SLOPES, FAMILY, OTHER
    )
    own = values[SLOPES[4][0]]
    limit = step.drop_limit(tl.load(p_p).to(tl.float64))
    drop = step.dropped(at, tl.load(p_seed), limit)
    if RESCALE:
        own = own / tl.load(p_numbers + KEEP)
    own = tl.where(drop, 0.0, own)
    h = own
    if OTHER is not None:
        h = tl.where(drop, values[SLOPES[4][1]], own)
    return h, own


@triton.jit
def own_backward(
    p_table,
    p_numbers,
    p_seed,
    p_p,
    p_x,
    p_v0,
    p_kept,
    p_g,
    p_gu,
    p_gv,
    p_gx,
    p_gv0,
    p_sums,  # [LEARNED, N] in float64
    T,
    N,
    C,
    area,
    VARIES: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    STRIDE: tl.constexpr,
    REST: tl.constexpr,
    AT_REST: tl.constexpr,
    STATES: tl.constexpr,
    SLOTS: tl.constexpr,
    LEARNED: tl.constexpr,
    BEFORE: tl.constexpr,  # a program or None; results: the states before
    SLOPES: tl.constexpr,  # a program or None; results: the surrogate derivatives
    RETREAT: tl.constexpr,  # results: the gradients of x, of the coefficients and of the states
    TEMPORAL: tl.constexpr,
    RESCALE: tl.constexpr,
    FAMILY: tl.constexpr,
    OTHER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of ROWS neurons, from the last timestep to the first."""
    o = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, wide = o < N, o * 0 + N  # in 64 bits
    zero = tl.zeros((ROWS,), p_numbers.dtype.element_ty)
    none = zero.to(tl.float64)
    k = _coefficients(p_table, o // area % C, C, zero, VARIES, COEFFICIENTS, STRIDE)
    rho = tl.load(p_numbers + RHO)
    c, sums = (), ()
    for i in tl.static_range(STATES):
        c = c + (_row(p_gv, i * N + o, inside, zero),)
    for _ in tl.static_range(LEARNED):
        sums = sums + (none,)
    for back in range(T):
        t = T - 1 - back
        at = wide * t + o
        x, g, gu = (
            _row(p_x, at, inside, zero),
            _row(p_g, at, inside, zero),
            _row(p_gu, at, inside, zero),
        )
        kept = _saved(p_kept, t, o, inside, T, wide, SLOTS)
        states = _rest(p_v0, k, o, inside, N, REST, STATES)
        if BEFORE is not None:
            later = o * 0 + t > 0
            earlier = _saved(p_kept, t - 1, o, inside & later, T, wide, SLOTS)
            states = _states_before(earlier, later, states, k, zero, p_numbers, BEFORE, STATES)
        h, own = zero, zero
        if SLOPES is not None:
            h, own = _masked(
                k,
                states,
                kept,
                x,
                at,
                zero,
                p_seed,
                p_p,
                p_numbers,
                SLOPES,
                RESCALE,
                FAMILY,
                OTHER,
            )
        values = _computed(
            k, states, kept, x, c, g, gu, h, own, rho, zero, p_numbers, RETREAT, FAMILY, OTHER
        )
        if p_gx is not None:
            gx = zero if RETREAT[4][0] < 0 else values[RETREAT[4][0]]
            tl.store(p_gx + at, step.round_to(gx, p_gx.dtype.element_ty), mask=inside)
        terms, before = _pick(values, RETREAT[4][1], LEARNED, zero), sums
        sums = ()
        for i in tl.static_range(LEARNED):
            sums = sums + (before[i] + terms[i].to(tl.float64),)
        c = _pick(values, RETREAT[4][2], STATES, zero)
        if not TEMPORAL:
            c = _pick(c, (-1,) * STATES, STATES, zero)
    for i in tl.static_range(STATES):
        if p_gv0 is not None:
            tl.store(p_gv0 + i * N + o, c[i], mask=inside)
    for i in tl.static_range(LEARNED):
        total = sums[i]
        for j in tl.static_range(STATES):
            if AT_REST[j] == i:
                total += c[j].to(tl.float64)
        tl.store(p_sums + i * N + o, total, mask=inside)
