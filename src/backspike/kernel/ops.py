"""What the compiled backends share.

A call is encoded as numbers for a forward and a backward operator, which are opaque to
torch.compile and joined by autograd. A backend defines its pair of operators with `define` and runs
a call with `run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..options import LIF
from ..surrogate import FAMILIES
from . import layout, saved
from .autograd import Context, refuse_double_backward
from .call import Call, Moments, Record, Result, as_tensor, learns
from .coefficients import leak, state_dtype

# the classes of surrogates, by their codes in surrogate.h
KINDS = {kind.code: kind for kind in FAMILIES if kind.code}
SAVED_FORMS = ("exact", "bfloat16", "8bit", "1bit", "recompute")  # in the order of lif.h
CODE_DTYPES = {1: torch.bfloat16, 2: torch.uint8, 3: torch.uint8}

library = torch.library.Library("backspike", "FRAGMENT")


# -------------------------------------------------------------------------------- a call as numbers


def without_formula(neuron: LIF, kinds: Collection[type]) -> str | None:
    """The name of a surrogate of this neuron that is not of these classes, or None."""
    for surrogate in (neuron.base, neuron.replace):
        # torch.compile of 2.11 and older cannot trace `in` with classes
        if surrogate is not None and not any(type(surrogate) is kind for kind in kinds):
            return type(surrogate).__name__
    return None


def constants(call: Call) -> Tensor:
    """lam, offset, gain, theta, width and the adaptation, if any, in the dtype of the state.

    Shape `[rows, C]`, or `[rows, 1]` if none is per channel. The table is on the device of x if any
    of them is a tensor, so that the host does not read learned values; otherwise on the CPU.
    """
    width = 1.0 if call.width is None else call.width
    neuron = call.neuron
    rows = [*leak(call.tau, call.x, neuron.v_reset, neuron.decay_input), call.theta, width]
    rows += call.adaptation
    return constants_table(rows, state_dtype(call.x), call.x.device)


def constants_table(
    rows: Sequence[float | Tensor], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Floats and tensors as the rows of one detached tensor, `[rows, C]` or `[rows, 1]`."""
    if not any(isinstance(row, Tensor) for row in rows):
        return torch.tensor(rows, dtype=dtype, device="cpu").view(-1, 1)
    tensors = [
        row.detach().to(device)
        if isinstance(row, Tensor)
        else torch.full((), row, dtype=torch.float64, device=device)
        for row in rows
    ]
    return torch.stack(torch.broadcast_tensors(*[row.to(dtype).reshape(-1) for row in tensors]))


def states(constants: Tensor) -> int:
    """The number of rows of a state: v, and w if the constants include an adaptation."""
    return 1 if len(constants) == 5 else 2


def encode(call: Call) -> tuple[list[int], list[float]]:
    """Encode the neuron as (flags, numbers) for the operators.

    The flags end with the codes of the surrogate and of its replacement, the numbers end with
    their fields.
    """
    neuron = call.neuron
    switches = (
        neuron.soft,
        neuron.decay_input,
        neuron.temporal_gradient,
        neuron.rescale,
        call.width is not None,
    )
    flags = [int(switch) for switch in switches]
    numbers = [float(neuron.v_reset or 0.0), float(neuron.reset_gradient)]
    for surrogate in (neuron.base, neuron.replace):
        flags.append(0 if surrogate is None else surrogate.code)  # type: ignore[attr-defined]
        if surrogate is not None:
            values = fields(surrogate)  # type: ignore[arg-type]
            numbers += [float(getattr(surrogate, f.name)) for f in values]
    return flags, numbers


@lru_cache(maxsize=256)
def surrogates(flags: tuple[int, ...], numbers: tuple[float, ...]) -> list[Any]:
    """Decode the surrogate and its replacement, or None, from the result of `encode`."""
    values, kinds = iter(numbers[2:]), [KINDS.get(code) for code in flags[-2:]]
    return [kind and kind(*islice(values, len(fields(kind)))) for kind in kinds]


@lru_cache(maxsize=256)
def eight_bits(flags: tuple[int, ...], numbers: tuple[float, ...]) -> tuple[float, bool]:
    """The fields of `saved.eight_bits` for the neuron in the result of `encode`."""
    base, replace = surrogates(flags, numbers)
    code = saved.eight_bits(base, replace, parametric=bool(flags[4]))
    return float(code.unit), code.logarithmic


# ----------------------------------------------------------------------------------------- autograd


def run(name: str, call: Call) -> Result:
    """Run the call with the operators that were defined under this name."""
    if call.per_neuron:
        return run(name, call.flattened()).unflattened(call.x.shape[2:])
    record = call.record
    if call.needs_gradient:
        spikes, state, membrane, moments, active, bits = _LIF.apply(name, call, *call.inputs)
    else:
        spikes, state, membrane, moments, _, active, bits = forward(
            name, call, constants(call), *encode(call), form=-1
        )
    membrane = membrane if record.membrane else None
    return Result(
        spikes, state, membrane, Moments(*moments) if record.moments else None, active, bits
    )


def forward(
    name: str, call: Call, constants: Tensor, flags: list[int], numbers: list[float], form: int
) -> list[Tensor | None]:
    """[spikes, state, membrane, moments `[2, T, C]`, code saved for backward, active, bits].

    Outputs that were not requested are None. form: an index into `SAVED_FORMS`, or -1 to save
    nothing.
    """
    record = call.record
    records = record._replace(
        membrane=record.membrane or form == 0,
        active=record.active and form >= 0,
        bits=record.bits and writes_bits(name, call.x.shape, record.moments),
    )
    operator = getattr(torch.ops.backspike, f"{name}_forward")
    outputs = iter(
        operator(
            call.x, call.v0, constants, call.seed, call.p, flags, numbers, call.repeats, form,
            list(records),
        )
    )  # fmt: skip
    codes = form in CODE_DTYPES
    returned = (True, True, *records[:2], codes, records.active, records.bits)
    return [next(outputs, None) if is_returned else None for is_returned in returned]


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, name: str, call: Call, *inputs: float | Tensor | None
    ) -> tuple[Tensor | None, ...]:
        neuron, table, encoded = call.neuron, constants(call), encode(call)
        form = SAVED_FORMS.index(neuron.saves)
        spikes, state, membrane, moments, saved_u, active, bits = forward(
            name, call, table, *encoded, form
        )
        assert spikes is not None
        saves_x = neuron.saves == "recompute" or (learns(call.tau) and neuron.decay_input)
        saved_u = membrane if form == 0 else saved_u
        x = call.x if saves_x else None
        ctx.save_for_backward(
            saved_u, call.v0, x, table, call.seed, call.p, *map(as_tensor, inputs[2:])
        )
        ctx.operators, ctx.encoded, ctx.record, ctx.form = name, encoded, call.record, form
        ctx.repeats, ctx.x_dtype = call.repeats, call.x.dtype
        ctx.shape, ctx.strides = spikes.shape, spikes.stride()[1:]
        ctx.mark_non_differentiable(*(a for a in (active, bits) if a is not None))
        ctx.set_materialize_grads(False)
        return spikes, state, membrane, moments, active, bits

    @staticmethod
    def backward(
        ctx: Context,
        g: Tensor | None,
        g_v: Tensor | None,
        g_u: Tensor | None,
        g_moments: Tensor | None,
        *_: None,
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        saved_u, v0, x, table, seed, p, *parameters = ctx.saved_tensors
        _, _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # in compiled code, outputs that were not requested receive zeros instead of None
        g_u, g_v = g_u if ctx.record.membrane else None, g_v if ctx.record.state else None
        line = (
            moment_gradient(g_moments, ctx.shape, table.dtype)
            if ctx.record.moments and g_moments is not None
            else None
        )
        outputs = getattr(torch.ops.backspike, f"{ctx.operators}_backward")(
            saved_u, v0, x, table, seed, p, g, g_v, g_u, line,
            ctx.shape, ctx.strides, *ctx.encoded,
            ctx.repeats, ctx.form, learns, ctx.x_dtype, needs_x, needs_v0,
        )  # fmt: skip
        gx, g_v0 = outputs[0] if needs_x else None, outputs[int(needs_x)] if needs_v0 else None
        sums = outputs[-1] if learns else None
        return None, None, gx, g_v0, *learned_gradients(sums, parameters, needs)


def writes_bits(name: str, shape: Sequence[int], moments: bool) -> bool:
    """Whether the kernel writes spikes as bits.

    Triton's does, if a timestep fills whole bytes and no moments are computed.
    """
    return name == "triton_lif" and not moments and math.prod(shape[1:]) % 8 == 0


def moment_gradient(g_moments: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """a and b, `[2, T, C]`: the gradient of the moments reaches u as gu = a + b u."""
    n = max(math.prod(shape[1:]) // max(g_moments.shape[2], 1), 1)
    return torch.stack((g_moments[0] / n, g_moments[1] * (2 / n))).to(dtype)


def learned_gradients(
    sums: Iterable[Tensor] | None, parameters: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of tau and the other parameters, where they are needed.

    sums: a row for each parameter, that of tau times tau^2; None if no gradient is needed.
    """
    if sums is None:
        return [None] * len(needs)
    grads: list[Tensor | None] = []
    for row, parameter, needed in zip(sums, parameters, needs):
        if not needed or parameter is None:
            grads.append(None)
        elif not grads:
            grads.append(reduce_to(row / parameter.to(row) ** 2, parameter))
        else:
            grads.append(reduce_to(row, parameter))
    return grads


def reduce_to(row: Tensor, parameter: Tensor) -> Tensor:
    """A row of sums in the shape and dtype of the parameter, which is per channel or 0-dim."""
    return (row if parameter.dim() else row.sum()).view(parameter.shape).to(parameter)


# ------------------------------------------------------------------------------------ the operators


class ForwardInputs(NamedTuple):
    """The arguments of a forward operator."""

    x: Tensor
    v0: Tensor | None
    constants: Tensor
    seed: Tensor | None
    p: Tensor | None
    flags: list[int]
    numbers: list[float]
    repeats: int
    form: int
    records: list[bool]  # a Record


class Forward(NamedTuple):
    """The outputs of the forward operator, which returns those that are not None."""

    spikes: Tensor
    state: Tensor  # empty if it is not recorded
    membrane: Tensor | None
    moments: Tensor | None
    saved_u: Tensor | None
    active: Tensor | None
    bits: Tensor | None


class BackwardInputs(NamedTuple):
    """The arguments of a backward operator."""

    saved_u: Tensor | None
    v0: Tensor | None
    x: Tensor | None
    constants: Tensor
    seed: Tensor | None
    p: Tensor | None
    g: Tensor | None
    g_v: Tensor | None
    g_u: Tensor | None
    line: Tensor | None
    shape: list[int]
    strides: list[int]
    flags: list[int]
    numbers: list[float]
    repeats: int
    form: int
    learns: int
    dtype: torch.dtype
    needs_x: bool
    needs_v0: bool

    @property
    def device(self) -> torch.device:
        saved = self.x if self.saved_u is None else self.saved_u
        assert saved is not None
        return saved.device


class Backward(NamedTuple):
    """The outputs of the backward operator, which returns those that are not None."""

    gx: Tensor | None
    gv0: Tensor | None
    sums: Tensor | None  # [3, C], or [6, C] with adaptation


def present(outputs: Iterable[Tensor | None]) -> list[Tensor]:
    """The outputs that are not None."""
    return [a for a in outputs if a is not None]


def empty_state(
    constants: Tensor,
    step: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """An uninitialised state `[B, ...]`, or `[2, B, ...]`, whose timesteps have these strides."""
    n = states(constants)
    rows = layout.empty((n, *step), strides, dtype, device)
    return rows if n > 1 else rows[0]


def forward_outputs(a: ForwardInputs) -> Forward:
    """Allocate the outputs of a forward operator."""
    x, form, record = a.x, a.form, Record(*a.records)
    strides, dtype, device = layout.walk_strides(x[0], a.seed is not None), state_dtype(x), x.device
    shape = (x.shape[0] * a.repeats, *x.shape[1:])
    spikes, saved_u = layout.empty(shape, strides, x.dtype, device), None
    if form in CODE_DTYPES:
        bits = (shape[0], (math.prod(shape[1:]) + 7) // 8)
        saved_u = layout.empty(
            bits if form == 3 else shape, (1,) if form == 3 else strides, CODE_DTYPES[form], device
        )
    return Forward(
        spikes,
        empty_state(a.constants, shape[1:], strides, dtype, device)
        if record.state
        else torch.empty(0, dtype=dtype, device=device),
        layout.empty(shape, strides, dtype, device) if record.membrane else None,
        torch.zeros((2, shape[0], layout.channels(x)), dtype=torch.float64, device=device)
        if record.moments
        else None,
        saved_u,
        torch.empty((math.prod(shape) + 7) // 8, dtype=torch.uint8, device=device)
        if record.active and spikes.is_contiguous()
        else None,
        torch.empty(math.prod(shape) // 8, dtype=torch.uint8, device=device)
        if record.bits
        else None,
    )


def backward_outputs(a: BackwardInputs) -> Backward:
    """Allocate the outputs of a backward operator."""
    shape, strides, constants, device = a.shape, a.strides, a.constants, a.device
    return Backward(
        layout.empty((shape[0] // a.repeats, *shape[1:]), strides, a.dtype, device)
        if a.needs_x
        else None,
        empty_state(constants, shape[1:], strides, constants.dtype, device) if a.needs_v0 else None,
        torch.zeros((len(constants) - 2, constants.shape[1]), dtype=torch.float64, device=device)
        if a.learns
        else None,
    )


def define(
    name: str,
    key: str,
    forward: Callable[[ForwardInputs], list[Tensor]],
    backward: Callable[[BackwardInputs], list[Tensor]],
) -> None:
    """Define the operators `name_forward` and `name_backward` for the devices of this key."""
    library.define(
        f"{name}_forward(Tensor x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p,"
        " int[] flags, float[] numbers, SymInt repeats, int form, bool[] records) -> Tensor[]"
    )
    library.define(
        f"{name}_backward(Tensor? saved_u, Tensor? v0, Tensor? x, Tensor constants, Tensor? seed,"
        " Tensor? p, Tensor? g, Tensor? g_v, Tensor? g_u, Tensor? line, SymInt[] shape,"
        " SymInt[] strides, int[] flags, float[] numbers, SymInt repeats, int form, int learns,"
        " ScalarType dtype, bool needs_x, bool needs_v0) -> Tensor[]"
    )
    implement(f"{name}_forward", key, ForwardInputs, forward, lambda a: present(forward_outputs(a)))
    implement(
        f"{name}_backward", key, BackwardInputs, backward, lambda a: present(backward_outputs(a))
    )


I = TypeVar("I")
O = TypeVar("O")


def implement(
    operator: str,
    key: str,
    inputs: Callable[..., I],
    compute: Callable[[I], O],
    allocate: Callable[[I], O],
) -> None:
    """Register how a defined operator is computed, and how torch.compile allocates its outputs.

    Both functions take the arguments of the operator as one named tuple, `inputs`.
    """
    library.impl(operator, lambda *arguments: compute(inputs(*arguments)), key)
    torch.library.register_fake(
        f"backspike::{operator}", lambda *arguments: allocate(inputs(*arguments)), lib=library
    )
