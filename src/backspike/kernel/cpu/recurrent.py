"""The kernels of recurrent layers in C; `recurrent.c` has the details.

The weight is added row by row at the spikes, so that the work of the forward pass is proportional
to the number of spikes.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from ...options import LIF
from ...surrogate import is_family
from .. import ops
from ..call import Call
from ..pack import Packed
from ..recurrent import Forward, Gradients, Loop, Synapse, Upstream, allocate
from . import library


class _Job(ctypes.Structure):
    """The struct Recurrent of recurrent.c, where the fields are documented."""

    _fields_ = [
        ("neuron", library.Job),
        *library.fields(ctypes.c_int64, "neurons samples rows synapse"),
        *library.fields(ctypes.c_double, "lam_s gain_s"),
        *library.fields(ctypes.c_void_p, "p_seeds p_input"),
        ("input_stride", ctypes.c_int64),
        *library.fields(
            ctypes.c_void_p, "p_before p_bias p_panels p_turned p_bits p_current p_i0 p_i"
        ),
        ("p_scratch", ctypes.c_void_p),
    ]


def refuses(x: Tensor, weight: Tensor, neuron: LIF) -> str | None:
    """Why the C kernel cannot run this layer on x; None if it can."""
    if x.device.type != "cpu":
        return f"the kernel runs on the CPU, but the input is on {x.device}"
    if not weight.detach().sum().isfinite():
        return "a weight is not finite, and must show even where no spike selects it"
    name = ops.without_formula(neuron, ops.KINDS.values())
    return None if name is None else f"the kernel has no formula for {name}"


def forward(call: Call, loop: Loop, saves: bool) -> Forward:
    """Allocates the outputs and runs the kernel; saves: keeps what backward needs."""
    weight, bias, before, synapse = loop
    done, x = allocate(call, loop, saves), call.x
    out, constants = done.out, done.constants
    T, N = x.shape[0], x[0].numel()
    if saves and _sparse(call):
        done.active = torch.empty((T, (N + 7) // 8), dtype=torch.uint8, device="cpu")
    job = _job(call, x, constants, done.encoded, weight.shape[0])
    library.set_form(job.neuron, max(done.form, 0), *done.encoded)
    partial = library.partial_sums(job.neuron, out.moments)
    neuron_tensors = {
        "v0": call.v0, "s": out.spikes, "u": out.membrane, "kept": out.saved_u,
        "v": out.state if call.record.state else None, "active": done.active, "partial": partial,
        "sums": out.moments,
    }  # fmt: skip
    panels = _panels(weight.detach().to(constants.dtype).contiguous(), turned=True)
    offsets = None if bias is None else _padded(bias.detach().to(constants.dtype).contiguous())
    bits = (
        torch.empty(x.numel() // 8, dtype=torch.uint8, device="cpu")
        if saves and x.shape[-1] % 8 == 0
        else None
    )
    if synapse is not None:
        _set_synapse(job, synapse)
    job.input_stride = x.stride(0) if T > 1 else 0
    tensors = {
        "input": x, "before": before, "bias": offsets, "panels": panels, "current": done.current,
        "bits": bits, "i": done.i, "i0": None if synapse is None else synapse.i0,
    }  # fmt: skip
    fired = _run("recurrent_forward", x.dtype, job, neuron_tensors, tensors)
    if bits is not None and fired >= 0:
        shape = out.spikes.shape, out.spikes.stride()
        done.packed = Packed(bits, 1, *shape, x.dtype, fired)
    if out.moments is not None:
        out.moments.div_(N // max(job.neuron.C, 1))
    return done


def backward(a: Upstream) -> Gradients:
    """Allocates the gradients and runs the kernel."""
    constants, step = a.constants, a.shape[1:]
    gx = torch.empty(a.shape, dtype=a.dtype, device="cpu")
    state = step if ops.states(constants) == 1 else (2, *step)
    gv0 = torch.empty(state, dtype=constants.dtype, device="cpu") if a.needs_v0 else None
    synapse = a.loop.synapse
    gi0 = None if synapse is None else torch.empty(step, dtype=constants.dtype, device="cpu")
    shape = len(constants) - 2, constants.shape[1]
    sums = torch.zeros(shape, dtype=torch.float64, device="cpu") if a.learns else None
    job = _job(a.call, gx, constants, a.encoded, a.shape[-1])
    library.set_form(job.neuron, a.form, *a.encoded)
    job.neuron.learns = a.learns
    job.neuron.g_stride, job.neuron.gu_stride = (
        0 if b is None else b.stride(0) for b in (a.g, a.g_u)
    )
    partial = library.partial_sums(job.neuron, sums)
    exact = a.form == 0
    neuron_tensors = {
        "v0": a.call.v0, "g": a.g, "gu": a.g_u, "gv": a.g_v, "line": a.line, "gx": gx, "gv0": gv0,
        "u": a.saved_u if exact else None, "kept": None if exact else a.saved_u,
        "active": a.active, "partial": partial, "sums": sums,
    }  # fmt: skip
    weight = a.loop.weight.to(constants.dtype).contiguous()
    if synapse is not None:
        _set_synapse(job, synapse)
    tensors = {
        "panels": _panels(weight), "current": a.current, "i": gi0,
        "turned": None if a.active is None else weight.t().contiguous(), "i0": a.g_i,
    }  # fmt: skip
    _run("recurrent_backward", a.dtype, job, neuron_tensors, tensors)
    return Gradients(gx, gv0, gi0, sums)


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
    neuron.threads = min(neuron.threads, neuron.chunks)
    if call.seed is not None:
        library.set_mask(neuron, call.seed[0], call.p)
    job = _Job(neuron=neuron, neurons=n, samples=samples, rows=rows, lam_s=1.0, gain_s=1.0)
    job.p_seeds = None if call.seed is None else call.seed.data_ptr()
    return job


def _set_synapse(job: _Job, synapse: Synapse) -> None:
    job.synapse, job.lam_s, job.gain_s = 1, float(synapse.lam), float(synapse.gain)


def _run(
    name: str,
    dtype: torch.dtype,
    job: _Job,
    neuron_tensors: dict[str, Tensor | None],
    tensors: dict[str, Tensor | None],
) -> int:
    library.set_pointers(job.neuron, **neuron_tensors)
    library.set_pointers(job, **tensors)
    size = library.function("recurrent_scratch")(ctypes.byref(job))
    scratch = torch.empty(job.neuron.threads, size, dtype=torch.uint8, device="cpu")
    job.p_scratch = scratch.data_ptr()
    return library.function(name, dtype)(ctypes.byref(job))


def _padded(x: Tensor, dim: int = -1) -> Tensor:
    """x with zeros at the end of dimension -1 or -2, so that its size is that of whole panels."""
    columns = library.function("recurrent_columns")()
    missing = -x.shape[dim] % columns
    return F.pad(x, (0, 0) * (-1 - dim) + (0, missing)) if missing else x


def _panels(weight: Tensor, turned: bool = False) -> Tensor:
    """The weight `[n, n]`, or the transposed one, as panels of columns, `[panels, n, columns]`."""
    columns, n = library.function("recurrent_columns")(), len(weight)
    if turned:  # one copy: transposing first would take several times as long
        panels = _padded(weight, -2).view(-1, columns, n).transpose(1, 2)
    else:
        panels = _padded(weight).view(n, -1, columns).transpose(0, 1)
    return panels.contiguous()
