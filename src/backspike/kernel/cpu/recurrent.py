"""A recurrent layer of neurons in C: its linear layer and its neurons over all T in one call.

`run` computes the same as `bs.lif` on x[t] + weight @ s[t-1] + bias, with exact gradients along
both paths. The weight is added row by row at the spikes, so that the work of the forward pass is
proportional to the number of spikes; `recurrent.c` has the details.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...options import LIF
from ...surrogate import is_family
from .. import ops
from ..autograd import Context, refuse_double_backward
from ..call import Call, Moments, Record, Result, as_tensor, learns
from ..coefficients import state_dtype
from ..pack import Packed, count, pack
from . import library, sparse

# The weight gradient adds rows at the spikes below this rate, and above it looks up sums of rows if
# there are so many neurons. Measured on one Xeon core for 12,700 samples of 128 neurons, in ms:
# adding rows 1.5 at 5 % and 2.5 at 17 %, looking up 2.6, dense 4.2; of 512: 13 and 36, 26, 50.
GATHERED_BELOW = 0.13
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


class _Job(ctypes.Structure):
    """The struct Recurrent of recurrent.c, where the fields are documented."""

    _fields_ = [
        ("neuron", library.Job),
        *library.fields(ctypes.c_int64, "neurons samples rows synapse"),
        *library.fields(ctypes.c_double, "lam_s gain_s"),
        *library.fields(ctypes.c_void_p, "p_seeds p_input"),
        ("input_stride", ctypes.c_int64),
        *library.fields(ctypes.c_void_p, "p_before p_bias p_panels p_turned p_current p_i0 p_i"),
        ("p_scratch", ctypes.c_void_p),
    ]


def refuses(x: Tensor, weight: Tensor, neuron: LIF) -> str | None:
    """Why the C kernel cannot run this layer on x; None if it can."""
    if not library.available():
        return library.missing()
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if tracing or torch._C._are_functorch_transforms_active():
        return "it is being transformed"
    if x.device.type != "cpu" or weight.device.type != "cpu":
        return f"the kernel runs on the CPU, but the input is on {x.device}"
    if type(x) not in (Tensor, nn.Parameter):
        return f"the input is a {type(x).__name__}, not a plain tensor"
    if x.dim() < 2 or tuple(weight.shape) != (x.shape[-1],) * 2:
        return "the layer does not keep the last dimension of the input"
    if not x.numel():
        return "the input is empty"
    if not weight.detach().sum().isfinite():
        return "a weight is not finite, and must show even where no spike selects it"
    name = ops.without_formula(neuron, ops.KINDS.values())
    return None if name is None else f"the kernel has no formula for {name}"


def run(call: Call, loop: Loop) -> tuple[Result, Tensor | None]:
    """The outputs of the neurons, and the last i `[B, n]` of the synapse if there is one.

    call.seed: one seed for each timestep, `[T]`, or None. The layer acts on the last dimension.
    """
    if call.x.dtype == torch.float16:
        result, i = run(replace(call, x=call.x.float()), loop)
        return result._replace(spikes=result.spikes.half()), i
    call.x = call.x if call.x[0].is_contiguous() else call.x.contiguous()
    weight, bias, before, synapse = loop
    lam, gain, i0 = synapse or (1.0, 1.0, None)
    inputs = (weight, bias, i0, lam, gain, *call.inputs)
    if torch.is_grad_enabled() and any(map(learns, inputs)):
        spikes, state, membrane, moments, i = _Recurrent.apply(
            call, before, synapse is not None, *inputs
        )
    else:
        neuron = replace(call.neuron, memory="exact")
        job = _Forward(replace(call, neuron=neuron), loop, saves=False)
        out, i = job.out, job.i
        spikes, state, membrane, moments = out.spikes, out.state, out.membrane, out.moments
    return Result(
        spikes,
        state,
        membrane if call.record.membrane else None,
        Moments(*moments) if moments is not None else None,
    ), i


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
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
        done = _Forward(call, loop, saves=True)
        out = done.out
        packed = pack(out.spikes)
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
        ctx.synapse = (float(lam), float(gain)) if filtered else None
        ctx.form, ctx.encoded = done.form, done.encoded
        ctx.set_materialize_grads(False)
        return out.spikes, out.state, out.membrane, out.moments, done.i

    @staticmethod
    def backward(
        ctx: Context,
        g: Tensor | None,
        g_v: Tensor | None,
        g_u: Tensor | None,
        g_moments: Tensor | None,
        g_i: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("Recurrent")
        return _Backward(ctx, g, g_v, g_u, g_moments, g_i).gradients()


class _Forward:
    """A forward pass: allocates the outputs, runs the kernel, and keeps what backward needs."""

    def __init__(self, call: Call, loop: Loop, saves: bool) -> None:
        weight, bias, before, synapse = loop
        x, neuron = call.x, call.neuron
        # the currents are no smaller than the membranes, so nothing is gained by computing again
        memory = "exact" if neuron.saves == "recompute" else neuron.saves
        self.form = ops.SAVED_FORMS.index(memory) if saves else -1
        self.constants, self.encoded = ops.constants(call), ops.encode(call)
        record = call.record._replace(active=False, bits=False)
        self.out = out = ops.forward_outputs(
            ops.ForwardInputs(
                x, call.v0, self.constants, None, None, *self.encoded, 1, self.form,
                [*record._replace(membrane=record.membrane or self.form == 0)],
            )
        )  # fmt: skip
        T, N = x.shape[0], x[0].numel()
        learns_tau = learns(call.tau) and neuron.decay_input
        kept = saves and (synapse is not None or learns_tau)
        self.current = torch.empty_like(out.spikes) if kept else None
        self.i = (
            torch.empty(x.shape[1:], dtype=state_dtype(x), device="cpu")
            if synapse is not None
            else None
        )
        self.active = (
            torch.empty((T, (N + 7) // 8), dtype=torch.uint8, device="cpu")
            if saves and _sparse(call)
            else None
        )
        job = _job(call, x, self.constants, self.encoded, weight.shape[0])
        library.set_form(job.neuron, max(self.form, 0), *self.encoded)
        partial = library.partial_sums(job.neuron, out.moments)
        neuron_tensors = {
            "v0": _in_order(call.v0), "s": out.spikes, "u": out.membrane, "kept": out.saved_u,
            "v": out.state if record.state else None, "active": self.active, "partial": partial,
            "sums": out.moments,
        }  # fmt: skip
        panels = _panels(weight.detach().to(self.constants.dtype).t())
        offsets = None if bias is None else _padded(bias.detach().to(self.constants.dtype))
        if synapse is not None:
            _set_synapse(job, synapse.lam, synapse.gain)
        job.input_stride = x.stride(0) if T > 1 else 0
        tensors = {
            "input": x, "before": None if before is None else _in_order(before.to(x.dtype)),
            "bias": offsets, "panels": panels, "current": self.current, "i": self.i,
            "i0": None if synapse is None else _in_order(synapse.i0),
        }  # fmt: skip
        _run("recurrent_forward", call, job, neuron_tensors, tensors)
        if out.moments is not None:
            out.moments.div_(N // max(job.neuron.C, 1))


class _Backward:
    """A backward pass over what `_Recurrent.forward` saved."""

    def __init__(
        self,
        ctx: Context,
        g: Tensor | None,
        g_v: Tensor | None,
        g_u: Tensor | None,
        g_moments: Tensor | None,
        g_i: Tensor | None,
    ) -> None:
        (
            self.weight, self.bias, self.before, self.i0, v0, self.lam, self.gain,
            *self.parameters, codes, saved_u, self.current, active, constants, seed, p,
        ) = ctx.saved_tensors  # fmt: skip
        self.needs, call = ctx.needs_input_grad, ctx.call
        self.synapse = ctx.synapse
        self.packed: Packed = replace(ctx.packed, codes=codes)
        shape, dtype = self.packed.shape, self.packed.dtype
        record: Record = call.record
        self.learns = sum(1 << i for i, needed in enumerate(self.needs[10:]) if needed)
        self.gx = torch.empty(shape, dtype=dtype, device="cpu")
        state = shape[1:] if ops.states(constants) == 1 else (2, *shape[1:])
        self.gv0 = (
            torch.empty(state, dtype=constants.dtype, device="cpu") if self.needs[9] else None
        )
        self.gi0 = (
            torch.empty(shape[1:], dtype=constants.dtype, device="cpu") if self.synapse else None
        )
        self.sums = torch.zeros(
            (len(constants) - 2, constants.shape[1]), dtype=torch.float64, device="cpu"
        )
        line = None
        if record.moments and g_moments is not None:
            line = ops.moment_gradient(g_moments, shape, constants.dtype)
        call = replace(call, seed=seed, p=p)
        job = _job(call, self.gx, constants, ctx.encoded, shape[-1])
        library.set_form(job.neuron, ctx.form, *ctx.encoded)
        job.neuron.learns = self.learns
        g, g_u = (_in_time(b) for b in (g, g_u if record.membrane else None))
        job.neuron.g_stride, job.neuron.gu_stride = (
            0 if b is None else b.stride(0) for b in (g, g_u)
        )
        sums = self.sums if self.learns else None
        partial = library.partial_sums(job.neuron, sums)
        exact = ctx.form == 0
        neuron_tensors = {
            "v0": _in_order(v0), "g": g, "gu": g_u, "gv": _in_order(g_v), "line": line,
            "gx": self.gx, "gv0": self.gv0, "u": saved_u if exact else None,
            "kept": None if exact else saved_u, "active": active, "partial": partial,
            "sums": sums,
        }  # fmt: skip
        weight = self.weight.to(constants.dtype)
        if self.synapse:
            _set_synapse(job, *self.synapse)
        tensors = {
            "panels": _panels(weight), "current": self.current, "i": self.gi0,
            "turned": None if active is None else weight.t().contiguous(), "i0": _in_order(g_i),
        }  # fmt: skip
        _run("recurrent_backward", call, job, neuron_tensors, tensors)

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs of `_Recurrent.forward`."""
        n = self.gx.shape[-1]
        rows = self.gx.view(-1, n)
        needs = self.needs
        weight = self._weight_gradient(rows).to(self.weight) if needs[3] else None
        bias = rows.sum(0).to(self.bias) if needs[4] and self.bias is not None else None
        lam, gain = self._synapse_gradients() if any(needs[6:8]) else (None, None)
        parameters = [
            ops.reduce_to(row, p) if needed else None
            for row, p, needed in zip(self.sums, self.parameters, needs[10:])
        ]
        if needs[10]:
            tau = self.parameters[0]
            parameters[0] = ops.reduce_to(self.sums[0] / tau.to(self.sums) ** 2, tau)
        gi0 = self.gi0 if needs[5] else None
        return (
            None, None, None, weight, bias, gi0, lam, gain, self.gx if needs[8] else None,
            self.gv0, *parameters,
        )  # fmt: skip

    def _weight_gradient(self, rows: Tensor) -> Tensor:
        """The sum over t of gx[t].T @ s[t-1]."""
        T, n = self.gx.shape[0], self.gx.shape[-1]
        samples = len(rows) // T
        gradient = rows.new_zeros(n, n)
        if self.before is not None:
            gradient += rows[:samples].t() @ self.before.reshape(-1, n).to(rows)
        if T == 1:
            return gradient
        later, bits = rows[samples:], (len(rows) - samples) * n
        packed, density = self.packed, self.packed.density
        if packed.bits == 1 and bits % 8 == 0 and rows.dtype in sparse.DTYPES:
            spikes = sparse.Spikes(
                packed.codes[: bits // 8], len(later), n, count(packed.codes[: bits // 8])
            )
            if density is not None and density < GATHERED_BELOW:
                return gradient + spikes.weight_gradient(later, "gather")
            if n >= LOOKED_UP_FROM:
                return gradient + spikes.weight_gradient(later, "lookup")
        return gradient + later.t() @ packed.unpack().view(-1, n)[: len(later)]

    def _synapse_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of lam and gain, from those of x, gain times those of i."""
        assert self.current is not None
        assert self.synapse is not None
        lam, gain = self.synapse
        i = self.current.double()
        before = torch.zeros_like(i[:1]) if self.i0 is None else self.i0[None].double()
        before = torch.cat((before, i[:-1]))
        gi = self.gx.double() / gain
        of_lam, of_gain = (gi * before).sum(), (gi * (i - lam * before)).sum() / gain
        return (
            None if self.lam is None else of_lam.to(self.lam),
            None if self.gain is None else of_gain.to(self.gain),
        )


def _sparse(call: Call) -> bool:
    """Whether h may be zero for many neurons."""
    mask, base = call.neuron.mask, call.neuron.base
    masked = mask is not None and call.seed is not None and mask.replace is None
    return masked or (is_family(base) and base.support < float("inf") and not call.neuron.replace)


def _job(
    call: Call, x: Tensor, constants: Tensor, encoded: tuple[list[int], list[float]], n: int
) -> _Job:
    """The job with all that both directions need; x: a tensor of the shape of the input."""
    strides = torch.empty(x.shape[1:], device="meta").stride()
    neuron = library.make_job(x.shape, constants, strides, *encoded, x.element_size())
    samples = neuron.N // n
    # the weight should be read rarely if it is larger than the cache
    rows = 8 if n <= 256 else 16 if n <= 512 else 32
    neuron.chunks = -(-samples // rows)
    neuron.streams = 0
    neuron.threads = min(neuron.threads, neuron.chunks)
    if call.seed is not None:
        library.set_mask(neuron, call.seed[0], call.p)
    job = _Job(neuron=neuron, neurons=n, samples=samples, rows=rows, lam_s=1.0, gain_s=1.0)
    job.p_seeds = None if call.seed is None else call.seed.data_ptr()
    return job


def _set_synapse(job: _Job, lam: float | Tensor, gain: float | Tensor) -> None:
    job.synapse, job.lam_s, job.gain_s = 1, float(lam), float(gain)


def _run(
    name: str,
    call: Call,
    job: _Job,
    neuron_tensors: dict[str, Tensor | None],
    tensors: dict[str, Tensor | None],
) -> None:
    library.set_pointers(job.neuron, **neuron_tensors)
    library.set_pointers(job, **tensors)
    size = library.function("recurrent_scratch")(ctypes.byref(job))
    scratch = torch.empty(job.neuron.threads, size, dtype=torch.uint8, device="cpu")
    job.p_scratch = scratch.data_ptr()
    library.function(name, call.x.dtype)(ctypes.byref(job))


def _padded(x: Tensor) -> Tensor:
    """x with its last dimension filled up with zeros to whole panels."""
    columns = library.function("recurrent_columns")()
    return F.pad(x, (0, -x.shape[-1] % columns)).contiguous()


def _panels(x: Tensor) -> Tensor:
    """The matrix `[rows, n]` as panels of columns, `[panels, rows, columns]`."""
    columns = library.function("recurrent_columns")()
    return _padded(x).view(len(x), -1, columns).transpose(0, 1).contiguous()


def _in_order(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _in_time(x: Tensor | None) -> Tensor | None:
    """x `[T, ...]` with contiguous timesteps; equal timesteps are not copied."""
    return x if x is None or x[0].is_contiguous() else x.contiguous()
