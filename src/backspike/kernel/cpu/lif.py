"""The recursion in C: one fused pass over all T per direction. Kept is the membrane, or less (see saved.py).

`lif.c` is built as a plain shared library per level of the processor and called through ctypes, inside two operators that are
opaque to torch.compile. Within a timestep elements are walked in the memory order of x, so that channels-last tensors and
inputs repeated over T (stride 0) are read as they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import layout, ops
from ..call import Result
from ..saved import pack, unpack
from .library import call, function, make_job, remember, set_mask, set_pointers

if TYPE_CHECKING:
    from ..call import Call


def refuses(call: Call) -> str | None:
    tensors = (call.x, call.v0, call.tau, call.theta, call.width, call.seed, call.p)
    if any(isinstance(p, Tensor) and p.device.type != "cpu" for p in tensors):
        return f"it computes on the CPU, and the input is on {call.x.device}"
    name = ops.without_formula(call, ops.KINDS.values())
    return None if name is None else f"it has no formula in C for {name}"


def run(call: Call) -> Result:
    return ops.run("lif", call)


# ------------------------------------------------------------------------------------------------ the operators

ops.define("lif")


@torch.library.impl(ops.library, "lif_forward", "CPU")
def _lif_forward(
    x: Any,
    v0: Any,
    constants: Any,
    seed: Any,
    p: Any,
    flags: Any,
    numbers: Any,
    repeats: int,
    keeps: int,
    records: Sequence[bool],
) -> Any:
    if x.dtype == torch.float16:
        given = (v0, constants, seed, p, flags, numbers, repeats, keeps, records)
        spikes, *others = _lif_forward(x.float(), *given)
        return [spikes.half(), *others]
    assert not records[3]  # bits, see operators.writes_bits
    out = ops.forward_outputs(x, seed is not None, repeats, keeps, records)
    spikes, strides, active, sums = out.spikes, out.spikes.stride()[1:], out.active, out.moments
    x, v0 = layout.arranged(x, strides), layout.one(v0, strides)
    job = make_job(spikes.shape, constants, strides, flags, numbers, x.element_size())
    job.x_stride = x.stride(0) if repeats == 1 else 0
    remember(job, max(keeps, 0), flags, numbers)
    bits = active
    if active is not None:
        set_mask(job, seed, p)
        if job.N % 8:  # the kernel fills the last byte of each timestep
            bits = torch.empty((job.T, (job.N + 7) // 8), dtype=torch.uint8)
    partial = None if sums is None else torch.zeros(job.chunks, sums.numel(), dtype=torch.float64)
    set_pointers(
        job,
        x=x,
        v0=v0,
        s=spikes,
        u=out.membrane,
        v=out.state if records[4] else None,
        kept=out.kept,
        active=bits,
    )
    set_pointers(job, partial=partial, sums=sums)
    call("lif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    if active is not None and bits is not None and bits is not active:
        active.copy_(pack(torch.cat([unpack(row, job.N) for row in bits])))
    return ops.given(out)


@torch.library.impl(ops.library, "lif_backward", "CPU")
def _lif_backward(
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
    shape: Sequence[int],
    strides: Sequence[int],
    flags: Any,
    numbers: Any,
    repeats: int,
    keeps: int,
    learns: int,
    dtype: Any,
    needs_x: bool,
    needs_v0: bool,
) -> Any:
    if dtype == torch.float16:
        x, g = (None if a is None else a.float() for a in (x, g))
        given = (
            kept,
            v0,
            x,
            constants,
            seed,
            p,
            g,
            g_v,
            g_u,
            line,
            shape,
            strides,
            flags,
            numbers,
            repeats,
            keeps,
            learns,
        )
        outputs = _lif_backward(*given, torch.float32, needs_x, needs_v0)
        return [outputs[0].half(), *outputs[1:]] if needs_x else outputs
    out = ops.backward_outputs(
        constants, constants.device, shape, strides, repeats, learns, dtype, needs_x, needs_v0
    )
    x, g, g_u = (layout.arranged(a, strides) for a in (x, g, g_u))
    v0, g_v = layout.one(v0, strides), layout.one(g_v, strides)
    job = make_job(shape, constants, strides, flags, numbers, dtype.itemsize)
    job.learns, job.repeated = learns, repeats > 1
    remember(job, keeps, flags, numbers)
    set_mask(job, seed, p)
    job.x_stride, job.g_stride, job.gu_stride = (
        0 if a is None else a.stride(0) for a in (x, g, g_u)
    )
    if repeats > 1:
        job.x_stride = 0
    partial = (
        None if out.sums is None else torch.zeros(job.chunks, out.sums.numel(), dtype=torch.float64)
    )
    scratch = None
    if ops.KEEPS[keeps] == "recompute":
        scratch = torch.empty((job.threads, job.T, function("lif_block")()), dtype=constants.dtype)
    set_pointers(
        job,
        x=x,
        v0=v0,
        u=kept if keeps == 0 else None,
        kept=kept if keeps else None,
        scratch=scratch,
        line=line,
    )
    set_pointers(job, g=g, gu=g_u, gv=g_v, gx=out.gx, gv0=out.gv0, partial=partial, sums=out.sums)
    call("lif_backward", dtype, job)
    return ops.given(out)
