"""The recursion in C: one fused pass over all T in each direction.

It saves the membrane for backward, or less (see saved.py). `lif.c` is compiled as a plain shared
library for each processor level and called through ctypes, inside two operators that are opaque to
torch.compile. Kernels walk over a timestep in the memory order of x, so channels-last tensors and
inputs repeated over T (stride 0) are read without a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...options import CLIF
from .. import clif, layout, ops
from ..call import Call, Record, Result
from ..saved import pack, unpack
from .library import (
    call,
    make_job,
    partial_sums,
    replay_scratch,
    set_form,
    set_mask,
    set_pointers,
)


def refuses(call: Call) -> str | None:
    """Why the C kernel cannot run the call; None if it can."""
    tensors = (call.x, call.v0, call.tau, call.theta, call.width, call.seed, call.p)
    if any(isinstance(p, Tensor) and p.device.type != "cpu" for p in tensors):
        return f"it runs on the CPU, but the input is on {call.x.device}"
    name = ops.without_formula(call.neuron, ops.KINDS.values())
    return None if name is None else f"it has no formula in C for {name}"


def run(call: Call) -> Result:
    """The outputs of the call."""
    if isinstance(call.neuron, CLIF):
        return clif.run(call, compiled=True)
    return ops.run("lif", call)


# ------------------------------------------------------------------------------------ the operators


def _forward(a: ops.ForwardInputs) -> list[Tensor]:
    if a.x.dtype == torch.float16:
        spikes, *others = _forward(a._replace(x=a.x.float()))
        return [spikes.half(), *others]
    assert not Record(*a.records).bits  # see ops.writes_bits
    out = ops.forward_outputs(a)
    spikes, strides, active, sums = out.spikes, out.spikes.stride()[1:], out.active, out.moments
    x, v0 = layout.with_strides(a.x, strides), layout.state_with_strides(a.v0, strides)
    job = make_job(spikes.shape, a.constants, strides, a.flags, a.numbers, x.element_size())
    job.x_stride = x.stride(0) if a.repeats == 1 else 0
    set_form(job, max(a.form, 0), a.flags, a.numbers)
    bits = active
    if active is not None:
        set_mask(job, a.seed, a.p)
        if job.N % 8:  # the kernel pads each timestep to a whole byte
            bits = torch.empty((job.T, (job.N + 7) // 8), dtype=torch.uint8, device="cpu")
    partial = partial_sums(job, sums)
    state = out.state if Record(*a.records).state else None
    set_pointers(job, x=x, v0=v0, s=spikes, u=out.membrane, v=state, kept=out.saved_u, active=bits)
    set_pointers(job, partial=partial, sums=sums)
    call("lif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    if active is not None and bits is not None and bits is not active:
        active.copy_(pack(torch.cat([unpack(row, job.N) for row in bits])))
    return ops.present(out)


def _backward(a: ops.BackwardInputs) -> list[Tensor]:
    x, g, g_u = a.x, a.g, a.g_u
    if a.dtype == torch.float16:
        x, g = (None if b is None else b.float() for b in (x, g))
        outputs = _backward(a._replace(x=x, g=g, dtype=torch.float32))
        return [outputs[0].half(), *outputs[1:]] if a.needs_x else outputs
    out, strides, exact = ops.backward_outputs(a), a.strides, ops.SAVED_FORMS[a.form] == "exact"
    x, g, g_u = (layout.with_strides(b, strides) for b in (x, g, g_u))
    v0, g_v = layout.state_with_strides(a.v0, strides), layout.state_with_strides(a.g_v, strides)
    job = make_job(a.shape, a.constants, strides, a.flags, a.numbers, a.dtype.itemsize)
    job.learns, job.repeated = a.learns, a.repeats > 1
    set_form(job, a.form, a.flags, a.numbers)
    set_mask(job, a.seed, a.p)
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if b is None else b.stride(0) for b in (x, g, g_u)
    )
    if a.repeats > 1:
        job.x_stride = 0
    partial = partial_sums(job, out.sums)
    scratch = replay_scratch(job, a.constants.dtype)
    u, code = (a.saved_u, None) if exact else (None, a.saved_u)
    set_pointers(job, x=x, v0=v0, u=u, kept=code, scratch=scratch, line=a.line)
    set_pointers(job, g=g, gu=g_u, gv=g_v, gx=out.gx, gv0=out.gv0, partial=partial, sums=out.sums)
    call("lif_backward", a.dtype, job)
    return ops.present(out)


ops.define("lif", "CPU", _forward, _backward)
