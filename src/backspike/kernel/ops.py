"""What compiled backends share: a call in numbers, and a forward and a backward operator, opaque to torch.compile, that
autograd joins. A backend defines its pair with `define`, implements it, and runs a call with `run`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..surrogate import FAMILIES
from . import layout, saved
from .call import Moments, Result
from .coefficients import leak, state_dtype

if TYPE_CHECKING:
    from .call import Call

KINDS = {kind.code: kind for kind in FAMILIES if kind.code}  # by their codes in surrogate.h
KEEPS = ("exact", "bfloat16", "8bit", "1bit", "recompute")  # in the order of lif.h
CODES = {1: torch.bfloat16, 2: torch.uint8, 3: torch.uint8}

library = torch.library.Library("backspike", "FRAGMENT")


# --------------------------------------------------------------------------------------------------- a call in numbers


def without_formula(call: Call, kinds: Collection[type]) -> str | None:
    """The name of a surrogate of this call that is none of these classes, or None."""
    surrogates = (call.rule.surrogate, call.rule.replace)
    return next((type(s).__name__ for s in surrogates if not (s is None or type(s) in kinds)), None)


def constants(call: Call) -> Tensor:
    """lam, offset, gain, theta and width in the state's dtype: `[5, C]`, or `[5, 1]` when none is per channel.

    On the device of x where any is a tensor, so that nothing learned is read by the host; else on the CPU.
    """
    width = 1.0 if call.width is None else call.width
    rows = [*leak(call.tau, call.x, call.rule.v_reset, call.rule.decay_input), call.theta, width]
    return table(rows, state_dtype(call.x), call.x.device)


def table(rows: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Floats and tensors as rows of one tensor without a graph, `[rows, C]` or `[rows, 1]`."""
    if not any(isinstance(row, Tensor) for row in rows):
        return torch.tensor(rows, dtype=dtype).view(-1, 1)
    wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
    tensors = [
        row.detach().to(device) if isinstance(row, Tensor) else torch.full((), row, **wide)
        for row in rows
    ]
    return torch.stack(torch.broadcast_tensors(*[row.to(dtype).reshape(-1) for row in tensors]))


def encode(call: Call) -> tuple[list[int], list[float]]:
    """A rule in numbers, for the operators; a backend's job reads them.

    Of each surrogate: its code, the last of the flags, and its fields, the last of the numbers.
    """
    rule = call.rule
    switches = (
        rule.v_reset is None,
        rule.decay_input,
        rule.temporal_gradient,
        rule.rescale,
        call.width is not None,
    )
    flags = [int(switch) for switch in switches]
    numbers = [0.0 if rule.v_reset is None else rule.v_reset, rule.reset_gradient]
    surrogates: Any = (rule.surrogate, rule.replace)
    for surrogate in surrogates:
        flags.append(0 if surrogate is None else surrogate.code)
        if surrogate is not None:
            numbers += [float(value) for value in vars(surrogate).values()]
    return flags, numbers


@lru_cache(maxsize=256)
def surrogates(flags: tuple[int, ...], numbers: tuple[float, ...]) -> list[Any]:
    """The surrogate and its replacement, or None, that `encode` wrote."""
    values, kinds = iter(numbers[2:]), [KINDS.get(code) for code in flags[-2:]]
    return [kind and kind(*islice(values, len(fields(kind)))) for kind in kinds]


@lru_cache(maxsize=256)
def reach(flags: tuple[int, ...], numbers: tuple[float, ...]) -> float:
    """`saved.reach` of these surrogates."""
    return saved.reach(*surrogates(flags, numbers)).item()


# ---------------------------------------------------------------------------------------------------------- autograd


def run(name: str, call: Call) -> Result:
    """The call by the operators defined under this name."""
    rule = call.rule
    learned = (call.x, call.v0, call.tau, call.theta, call.width)
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in learned):
        spikes, state, membrane, moments, active, bits = _LIF.apply(name, call, *learned)
    else:
        spikes, state, membrane, moments, _, active, bits = forward(
            name, call, constants(call), *encode(call), keeps=-1
        )
    membrane = membrane if rule.record_membrane else None
    return Result(
        spikes, state, membrane, Moments(*moments) if rule.record_moments else None, active, bits
    )


def forward(
    name: str, call: Call, constants: Tensor, flags: list[int], numbers: list[float], keeps: int
) -> list[Any]:
    """[spikes, state, membrane, moments `[2, T, C]`, what is kept, active, bits]; None for what there is not.

    keeps: an index of `KEEPS`, or -1 for nothing.
    """
    rule = call.rule
    bits = rule.record_bits and writes_bits(name, call.x.shape, rule.record_moments)
    membrane = rule.record_membrane or keeps == 0
    records = [
        membrane,
        rule.record_moments,
        rule.record_active and keeps >= 0,
        bits,
        rule.record_state,
    ]
    operator = getattr(torch.ops.backspike, f"{name}_forward")
    outputs = iter(
        operator(
            call.x,
            call.v0,
            constants,
            call.seed,
            call.p,
            flags,
            numbers,
            call.repeats,
            keeps,
            records,
        )
    )
    asked = (True, True, *records[:2], keeps in CODES, *records[2:4])
    return [next(outputs, None) if wanted else None for wanted in asked]


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, call: Call, *learned: Any) -> Any:
        table, rule, keeps = constants(call), encode(call), KEEPS.index(call.rule.memory)
        spikes, state, membrane, moments, kept, active, bits = forward(
            name, call, table, *rule, keeps
        )
        keeps_x = call.rule.memory == "recompute" or (
            isinstance(call.tau, Tensor) and call.rule.decay_input
        )
        tensors = [p if isinstance(p, Tensor) else None for p in learned[2:]]
        kept = membrane if keeps == 0 else kept
        ctx.save_for_backward(
            kept, call.v0, call.x if keeps_x else None, table, call.seed, call.p, *tensors
        )
        ctx.name, ctx.rule, ctx.repeats, ctx.keeps, ctx.x_dtype = (
            name,
            rule,
            call.repeats,
            keeps,
            call.x.dtype,
        )
        ctx.shape, ctx.strides = spikes.shape, spikes.stride()[1:]
        ctx.records = call.rule.record_membrane, call.rule.record_moments, call.rule.record_state
        ctx.mark_non_differentiable(*(a for a in (active, bits) if a is not None))
        ctx.set_materialize_grads(False)
        return spikes, state, membrane, moments, active, bits

    @staticmethod
    def backward(
        ctx: Any,
        g: Tensor | None,
        g_v: Tensor | None,
        g_u: Tensor | None,
        g_moments: Tensor | None,
        *_: Any,
    ) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; use create_graph=False"
            )
        kept, v0, x, table, seed, p, *parameters = ctx.saved_tensors
        _, _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # what was not asked for gets zeros, not None, in compiled code
        g_u, g_v = g_u if ctx.records[0] else None, g_v if ctx.records[2] else None
        arriving = (
            line(g_moments, ctx.shape, table.dtype)
            if ctx.records[1] and g_moments is not None
            else None
        )
        outputs = getattr(torch.ops.backspike, f"{ctx.name}_backward")(
            kept, v0, x, table, seed, p, g, g_v, g_u, arriving,
            ctx.shape, ctx.strides, *ctx.rule, ctx.repeats, ctx.keeps, learns, ctx.x_dtype, needs_x, needs_v0,
        )  # fmt: skip
        gx, g_v0 = outputs[0] if needs_x else None, outputs[int(needs_x)] if needs_v0 else None
        grads: list[Tensor | None] = [None, None, None]
        if learns:
            sums = outputs[-1]
            grads = [
                reduced(row, parameter) if needed else None
                for row, parameter, needed in zip(sums, parameters, needs)
            ]
        if needs[0]:
            grads[0] = reduced(sums[0] / parameters[0].to(sums) ** 2, parameters[0])
        return None, None, gx, g_v0, *grads


def writes_bits(name: str, shape: Sequence[int], moments: bool) -> bool:
    """Whether a neuron's kernel writes bits: Triton's does, in whole bytes of a timestep and where it takes no sums."""
    return name == "triton_lif" and not moments and math.prod(shape[1:]) % 8 == 0


def line(g_moments: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """a and b, `[2, T, C]`: what arrives at the moments reaches u as gu = a + b u."""
    n = max(math.prod(shape[1:]) // max(g_moments.shape[2], 1), 1)
    return torch.stack((g_moments[0] / n, g_moments[1] * (2 / n))).to(dtype)


def reduced(row: Tensor, parameter: Tensor) -> Tensor:
    """A row of sums in the shape of what learns: one alone, one per channel, or one for all channels."""
    return (row if parameter.dim() else row.sum()).view(parameter.shape).to(parameter)


# ------------------------------------------------------------------------------------------------------- the operators


class Forward(NamedTuple):
    """What the forward operator writes; it returns what is not None."""

    spikes: Tensor
    state: Tensor  # empty where it is not recorded
    membrane: Tensor | None
    moments: Tensor | None
    kept: Tensor | None
    active: Tensor | None
    bits: Tensor | None


class Backward(NamedTuple):
    """What the backward operator writes, likewise."""

    gx: Tensor | None
    gv0: Tensor | None
    sums: Tensor | None  # [3, C]


def given(outputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [a for a in outputs if a is not None]


def forward_outputs(
    x: Tensor, masked: bool, repeats: int, keeps: int, records: Sequence[bool]
) -> Forward:
    strides, dtype, device = layout.order(x[0], masked), state_dtype(x), x.device
    shape = (x.shape[0] * repeats, *x.shape[1:])
    membrane, moments, active, written, state = records
    spikes, kept = layout.empty(shape, strides, x.dtype, device), None
    if keeps in CODES:
        bits = (shape[0], (math.prod(shape[1:]) + 7) // 8)
        kept = layout.empty(
            bits if keeps == 3 else shape, (1,) if keeps == 3 else strides, CODES[keeps], device
        )
    return Forward(
        spikes,
        torch.empty_strided(
            *((shape[1:], strides) if state else ((0,), (1,))), dtype=dtype, device=device
        ),
        layout.empty(shape, strides, dtype, device) if membrane else None,
        torch.zeros((2, shape[0], layout.channels(x)), dtype=torch.float64, device=device)
        if moments
        else None,
        kept,
        torch.empty((math.prod(shape) + 7) // 8, dtype=torch.uint8, device=device)
        if active and spikes.is_contiguous()
        else None,
        torch.empty(math.prod(shape) // 8, dtype=torch.uint8, device=device) if written else None,
    )


def backward_outputs(
    constants: Tensor,
    device: torch.device,
    shape: Sequence[int],
    strides: Sequence[int],
    repeats: int,
    learns: int,
    dtype: torch.dtype,
    needs_x: bool,
    needs_v0: bool,
) -> Backward:
    return Backward(
        layout.empty((shape[0] // repeats, *shape[1:]), strides, dtype, device)
        if needs_x
        else None,
        torch.empty_strided(shape[1:], strides, dtype=constants.dtype, device=device)
        if needs_v0
        else None,
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=device)
        if learns
        else None,
    )


def define(name: str) -> None:
    """A pair of operators, `name_forward` and `name_backward`, whose results torch.compile can foresee."""
    library.define(
        f"{name}_forward(Tensor x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p, int[] flags, float[] numbers,"
        " SymInt repeats, int keeps, bool[] records) -> Tensor[]"
    )
    library.define(
        f"{name}_backward(Tensor? kept, Tensor? v0, Tensor? x, Tensor constants, Tensor? seed, Tensor? p, Tensor? g,"
        " Tensor? g_v, Tensor? g_u, Tensor? line, SymInt[] shape, SymInt[] strides, int[] flags, float[] numbers,"
        " SymInt repeats, int keeps, int learns, ScalarType dtype, bool needs_x, bool needs_v0)"
        " -> Tensor[]"
    )
    torch.library.register_fake(f"backspike::{name}_forward", _foresee_forward, lib=library)
    torch.library.register_fake(f"backspike::{name}_backward", _foresee_backward, lib=library)


def _foresee_forward(
    x: Any, v0: Any, constants: Any, seed: Any, p: Any, flags: Any, numbers: Any, *rest: Any
) -> Any:
    return given(forward_outputs(x, seed is not None, *rest))


def _foresee_backward(
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
    *rest: Any,
) -> Any:
    shape, strides, _, _, repeats, _, learns, *others = rest
    device = (x if kept is None else kept).device
    return given(backward_outputs(constants, device, shape, strides, repeats, learns, *others))
