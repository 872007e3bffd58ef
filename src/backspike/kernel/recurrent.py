"""A recurrent layer of neurons: its linear layer and its neurons over all T in one call.

`run` computes the same as `bs.lif` on x[t] + weight @ s[t-1] + bias, with exact gradients along
both paths. The kernels are those of `cpu/recurrent.py` and `triton/recurrent.py`, modules with
`refuses`, `forward` and `backward`; what surrounds them is here. The timesteps of all states and
sequences that they get are contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..options import LIF
from . import ops
from .autograd import Context, refuse_double_backward
from .call import Call, Moments, Result, as_tensor, learns
from .coefficients import state_dtype
from .cpu import sparse
from .dispatch import fastest, unavailable
from .layout import MaybeTensor
from .pack import Packed, count, pack

# The weight gradient adds rows at the spikes below this rate, and above it looks up sums of rows if
# there are so many neurons. Measured on one Xeon core for 12,700 samples of 128 neurons, in ms:
# adding rows 1.7 at 10 % and 2.1 at 25 %, looking up 3.7, dense 4.2; of 512: 14 and 24, 28, 50.
GATHERED_BELOW = 0.28
LOOKED_UP_FROM = 96


class Synapse(NamedTuple):
    """The filter before the membrane, i[t] = lam i[t-1] + gain x[t], and i before the first step.

    lam, gain: numbers, or 0-dim tensors in which tau_synapse is learned. i0: `[B, n]`, or None.
    """

    lam: float | Tensor
    gain: float | Tensor
    i0: Tensor | None


class Loop(NamedTuple):
    """What closes the loop: the linear layer, and the spikes `[B, n]` before the first timestep."""

    weight: Tensor  # [n, n]
    bias: Tensor | None
    before: Tensor | None
    synapse: Synapse | None = None


@dataclass
class Forward:
    """The outputs of a forward pass, allocated by `allocate`, and what backward needs of it."""

    out: ops.Forward
    i: Tensor | None  # the last i of the synapse, [B, n]
    current: Tensor | None  # the current into the membranes, [T, B, n]
    constants: Tensor
    encoded: tuple[list[int], list[float]]
    form: int  # an index into SAVED_FORMS, or -1 to save nothing
    # [T, ...] bits: whether the gradient of a spike is needed, if the kernel computes that
    active: Tensor | None = None
    packed: Packed | None = None  # the spikes, if the kernel packs them


@dataclass
class Upstream:
    """The arguments of a backward pass: what forward saved, and the gradients that arrive."""

    call: Call  # without x and the constants
    loop: Loop  # without the bias
    shape: torch.Size
    dtype: torch.dtype
    saved_u: Tensor  # membranes or codes
    current: Tensor | None
    active: Tensor | None
    constants: Tensor
    encoded: tuple[list[int], list[float]]
    form: int
    learns: int
    needs_v0: bool
    g: Tensor | None
    g_v: Tensor | None
    g_u: Tensor | None
    line: Tensor | None
    g_i: Tensor | None


class Gradients(NamedTuple):
    """The outputs of a backward pass."""

    x: Tensor
    v0: Tensor | None
    i0: Tensor | None
    sums: Tensor | None  # [3, C], or [6, C] with adaptation, in float64; None if nothing is learned


def refuses(x: Tensor, weight: Tensor, neuron: LIF) -> str | None:
    """Why no kernel can run this layer on x; None if one can."""
    name = _backend(x, neuron)
    if name not in ("cpu", "triton"):
        return f"backend {name!r} was requested"
    if reason := unavailable(name):
        return reason
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if tracing or torch._C._are_functorch_transforms_active():
        return "it is being transformed"
    if type(x) not in (Tensor, nn.Parameter):
        return f"the input is a {type(x).__name__}, not a plain tensor"
    if weight.device != x.device:
        return f"the input is on {x.device}, but the weight is on {weight.device}"
    if x.dim() < 2 or tuple(weight.shape) != (x.shape[-1],) * 2:
        return "the layer does not keep the last dimension of the input"
    if not x.numel():
        return "the input is empty"
    why: str | None = _kernels(name).refuses(x, weight, neuron)
    return why


def run(call: Call, loop: Loop) -> tuple[Result, Tensor | None]:
    """The outputs of the neurons, and the last i `[B, n]` of the synapse if there is one.

    call.seed: one seed for each timestep, `[T]`, or None. The layer acts on the last dimension.
    """
    name = _backend(call.x, call.neuron)
    if call.x.dtype == torch.float16 and name == "cpu":
        result, i = run(replace(call, x=call.x.float()), loop)
        return result._replace(spikes=result.spikes.half()), i
    call.x = _in_time(call.x)
    weight, bias, before, synapse = loop
    lam, gain, i0 = synapse or (1.0, 1.0, None)
    inputs = (weight, bias, i0, lam, gain, *call.inputs)
    if torch.is_grad_enabled() and any(map(learns, inputs)):
        spikes, state, membrane, moments, i, bits = _Recurrent.apply(
            name, call, before, synapse is not None, *inputs
        )
    else:
        call = replace(call, neuron=replace(call.neuron, memory="exact"))
        done = _forward(name, call, loop, saves=False)
        out, i, bits = done.out, done.i, None
        spikes, state, membrane, moments = out.spikes, out.state, out.membrane, out.moments
    return Result(
        spikes,
        state,
        membrane if call.record.membrane else None,
        Moments(*moments) if moments is not None else None,
        bits=bits,
    ), i


def allocate(call: Call, loop: Loop, saves: bool, membrane: bool = False) -> Forward:
    """The outputs of a forward pass; saves: for backward; membrane: the kernel needs it."""
    x, neuron = call.x, call.neuron
    # the currents are no smaller than the membranes, so nothing is gained by computing again
    memory = "exact" if neuron.saves == "recompute" else neuron.saves
    form = ops.SAVED_FORMS.index(memory) if saves else -1
    table, encoded = ops.constants(call), ops.encode(call)
    record = call.record._replace(active=False, bits=False)
    record = record._replace(membrane=record.membrane or membrane or form == 0)
    out = ops.forward_outputs(
        ops.ForwardInputs(x, call.v0, table, None, None, *encoded, 1, form, [*record])
    )
    filtered = loop.synapse is not None
    kept = saves and (filtered or (learns(call.tau) and neuron.decay_input))
    return Forward(
        out,
        torch.empty(x.shape[1:], dtype=state_dtype(x), device=x.device) if filtered else None,
        torch.empty_like(out.spikes) if kept else None,
        table,
        encoded,
        form,
    )


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        name: str,
        call: Call,
        before: Tensor | None,
        filtered: bool,
        weight: Tensor,
        bias: Tensor | None,
        i0: Tensor | None,
        lam: float | Tensor,
        gain: float | Tensor,
        *inputs: float | Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        loop = Loop(weight, bias, before, Synapse(lam, gain, i0) if filtered else None)
        done = _forward(name, call, loop, saves=True)
        out = done.out
        packed = done.packed or pack(out.spikes)
        ctx.save_for_backward(
            weight, bias, before, i0, call.v0, as_tensor(lam), as_tensor(gain),
            *map(as_tensor, inputs[2:]),
            packed.codes, out.membrane if done.form == 0 else out.saved_u, done.current,
            done.active, done.constants, call.seed, call.p,
        )  # fmt: skip
        ctx.call = replace(
            call, x=call.x.new_empty(0), v0=None, tau=0.0, theta=0.0, width=None, seed=None,
            adaptation=(),
        )  # fmt: skip
        ctx.packed = replace(packed, codes=packed.codes[:0])
        ctx.numbers = tuple(p for p in (lam, gain) if not isinstance(p, Tensor))
        ctx.name, ctx.filtered, ctx.form, ctx.encoded = name, filtered, done.form, done.encoded
        ctx.set_materialize_grads(False)
        bits = packed.codes if packed.bits == 1 else None
        if bits is not None:
            ctx.mark_non_differentiable(bits)
        return out.spikes, out.state, out.membrane, out.moments, done.i, bits

    @staticmethod
    def backward(
        ctx: Context,
        g: Tensor | None,
        g_v: Tensor | None,
        g_u: Tensor | None,
        g_moments: Tensor | None,
        g_i: Tensor | None,
        _: None,
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("Recurrent")
        (
            weight, bias, before, i0, v0, lam, gain, *parameters,
            codes, saved_u, current, active, constants, seed, p,
        ) = ctx.saved_tensors  # fmt: skip
        numbers = iter(ctx.numbers)
        lam, gain = (next(numbers) if a is None else a.detach() for a in (lam, gain))
        packed, record = replace(ctx.packed, codes=codes), ctx.call.record
        needs = ctx.needs_input_grad[4:]
        line = None
        if record.moments and g_moments is not None:
            line = ops.moment_gradient(g_moments, packed.shape, constants.dtype)
        synapse = Synapse(lam, gain, i0) if ctx.filtered else None
        found: Gradients = _kernels(ctx.name).backward(
            Upstream(
                replace(ctx.call, v0=_in_order(v0), seed=seed, p=p),
                Loop(weight, None, before, synapse),
                packed.shape, packed.dtype, saved_u, current, active, constants,
                ctx.encoded, ctx.form, sum(1 << i for i, needed in enumerate(needs[7:]) if needed),
                needs[6], _in_time(g), _in_order(g_v), _in_time(g_u if record.membrane else None),
                line, _in_order(g_i),
            )
        )  # fmt: skip
        rows = found.x.view(-1, packed.shape[-1])
        of_lam = of_gain = None
        if synapse is not None and needs[3]:
            of_lam, of_gain = _synapse_gradients(synapse, current, found.x)
        of_weight = of_bias = None
        if needs[0]:
            of_weight, of_bias = _layer_gradients(rows, before, packed)
        elif needs[1]:
            of_bias = rows.sum(0)
        return (
            None, None, None, None,
            None if of_weight is None else of_weight.to(weight),
            of_bias.to(bias) if of_bias is not None and needs[1] else None,
            found.i0 if needs[2] else None,
            of_lam,
            of_gain,
            found.x if needs[5] else None,
            found.v0,
            *ops.learned_gradients(found.sums, parameters, needs[7:]),
        )  # fmt: skip


def _how(density: float, n: int) -> sparse.How | None:
    if density < GATHERED_BELOW:
        return "gather"
    return "lookup" if n >= LOOKED_UP_FROM else None


def _layer_gradients(rows: Tensor, before: Tensor | None, packed: Packed) -> tuple[Tensor, Tensor]:
    """The gradients of the weight, the sum over t of gx[t].T @ s[t-1], and of the bias.

    rows: gx, `[T samples, n]`.
    """
    T, n = packed.shape[0], packed.shape[-1]
    samples = len(rows) // T
    first, later, bits = rows[:samples], rows[samples:], (len(rows) - samples) * n
    density, how = packed.density, None
    if density is not None and packed.bits == 1 and bits % 8 == 0 and rows.dtype in sparse.DTYPES:
        how = _how(density, n)
    if how is None or T == 1:
        gradient, total = later.t() @ packed.unpack().view(-1, n)[: len(later)], later.sum(0)
    else:
        codes = packed.codes[: bits // 8]
        spikes = sparse.Spikes(codes, len(later), n, count(codes))
        gradient, total = spikes.gradients(later, how)
    if before is not None:
        gradient += first.t() @ before.reshape(-1, n).to(rows)
    return gradient, total + first.sum(0)


def _synapse_gradients(
    synapse: Synapse, current: Tensor | None, gx: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of lam and gain, where they are tensors; that of i is gx / gain."""
    assert current is not None
    lam, gain = (torch.as_tensor(a).double() for a in synapse[:2])
    i = current.double()
    before = torch.zeros_like(i[:1]) if synapse.i0 is None else synapse.i0[None].double()
    before = torch.cat((before, i[:-1]))
    gi = gx.double() / gain
    sums = (gi * before).sum(), (gi * (i - lam * before)).sum() / gain
    of_lam, of_gain = (
        total.to(p) if isinstance(p, Tensor) else None for total, p in zip(sums, synapse)
    )
    return of_lam, of_gain


def _backend(x: Tensor, neuron: LIF) -> str:
    return fastest(x.device) if neuron.backend == "auto" else neuron.backend


def _kernels(name: str) -> ModuleType:
    """The module with the kernels of this backend."""
    return import_module(f".{name}.recurrent", __package__)


def _forward(name: str, call: Call, loop: Loop, saves: bool) -> Forward:
    """The forward pass of this backend; saves: keeps what backward needs."""
    before, synapse = loop.before, loop.synapse
    if before is not None:
        before = before.to(call.x.dtype).contiguous()
    if synapse is not None:
        synapse = synapse._replace(i0=_in_order(synapse.i0))
    call = replace(call, v0=_in_order(call.v0))
    done: Forward = _kernels(name).forward(
        call, loop._replace(before=before, synapse=synapse), saves
    )
    return done


def _in_order(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _in_time(x: MaybeTensor) -> MaybeTensor:
    """x `[T, ...]` with contiguous timesteps; equal timesteps are not copied."""
    return x if x is None or x[0].is_contiguous() else x.contiguous()
