"""The recurrent layers of the backend "triton": launches the kernels of recurrent_kernels.py."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...errors import Unsupported
from ...options import LIF, AdaptiveLIF
from .. import ops
from ..call import Call
from ..recurrent import Forward, Gradients, Loop, Upstream, allocate, run
from ..reference import membrane_moments
from ..saved import pack
from . import lif, step
from .recurrent_kernels import recurrent_bwd_kernel, recurrent_fwd_kernel

# Bytes of a weight that a program may read at each timestep. Calculated, not measured: a
# multiprocessor reads this much of the second cache in some 5 us, in which a larger weight is
# better multiplied by all multiprocessors, in a product of its own.
LARGEST = 1 << 19
_SAMPLES = 16  # of a program: the rows that tensor cores multiply at once
_DEPTH = 16  # rows of the weight at a time

# why kernels did not compile, by dtype and width; such layers run step by step
_broken: defaultdict[tuple[torch.dtype, int], list[str]] = defaultdict(list)


def refuses(x: Tensor, weight: Tensor, neuron: LIF) -> str | None:
    """Why the Triton kernels cannot run this layer on x; None if they can."""
    if reason := lif.wrong_device(x):
        return reason
    if isinstance(neuron, AdaptiveLIF):
        return "the GPU has no such kernel for the adaptive neuron"
    n, dtype = len(weight), x.dtype
    if n * n * x.element_size() > LARGEST:
        return f"{n} neurons are too many for one program of the GPU"
    name = ops.without_formula(neuron, step.CASES)
    if name is not None:
        return f"the kernel has no formula for {name}"
    if x.device.type == "cuda":
        _try_to_compile(x.device, dtype, n)
    return next(iter(_broken[dtype, n]), None)


@cache
def _try_to_compile(device: torch.device, dtype: torch.dtype, n: int) -> None:
    """Runs a layer forward and backward once: the backward pass cannot go another way."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.zeros(2, 1, n, device=device, dtype=dtype, requires_grad=True)
        call = Call(x, None, LIF(), tau=2.0, theta=1.0, width=None, seed=None, p=None)
        with suppress(Unsupported):  # the launch has stored the reason
            result, _ = run(call, Loop(x.new_zeros(n, n), None, None))
            torch.autograd.grad(result.spikes.sum(), x)


class _Samples(lif.Grid):
    """Each program has some samples and all their neurons."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__(shape, torch.empty(shape[1:], device="meta").stride(), tiled=False)
        self.n = shape[-1]
        self.broken = _broken[dtype, self.n]
        self.rows, self.columns = _SAMPLES, max(triton.next_power_of_2(self.n), 16)
        self.programs = triton.cdiv(self.N // self.n, self.rows)
        self.warps = max(4, self.columns // 32)


class _Neuron(NamedTuple):
    """What the kernels are told about the neuron; see `ops.encode`."""

    constants: Tensor
    flags: list[int]
    numbers: list[float]
    learns: int = 0
    repeats: int = 1


def forward(call: Call, loop: Loop, saves: bool) -> Forward:
    """Allocates the outputs and runs the kernel; saves: keeps what backward needs."""
    x, synapse = call.x, loop.synapse
    done = allocate(call, loop, saves, membrane=call.record.moments)
    out, table = done.out, done.constants
    memory = ops.SAVED_FORMS[done.form] if done.form in ops.CODE_DTYPES else None
    saved_u = out.saved_u
    if memory == "1bit":  # as bytes; they are packed below
        saved_u = torch.empty(out.spikes.shape, dtype=torch.uint8, device=x.device)
    _launch(
        recurrent_fwd_kernel,
        x.shape,
        x.dtype,
        loop,
        _Neuron(table, *done.encoded),
        memory,
        p_x=x,
        p_v0=call.v0,
        p_before=loop.before,
        p_bias=None if loop.bias is None else loop.bias.detach().to(table.dtype).contiguous(),
        p_matrix=loop.weight.detach().t().to(x.dtype).contiguous(),
        p_i0=None if synapse is None else synapse.i0,
        p_s=out.spikes,
        p_u=out.membrane,
        p_v=out.state if call.record.state else None,
        p_i=done.i,
        p_saved=saved_u,
        p_current=done.current,
        x_stride=x.stride(0),
    )
    if memory == "1bit":
        assert out.saved_u is not None
        assert saved_u is not None
        out.saved_u.copy_(torch.stack([pack(marks) for marks in saved_u]))
    if out.moments is not None:
        assert out.membrane is not None
        mean, square, _ = membrane_moments(out.membrane)
        out.moments.copy_(torch.stack((mean, square)))
    return done


def backward(a: Upstream) -> Gradients:
    """Allocates the gradients and runs the kernel."""
    table, step_shape, synapse = a.constants, a.shape[1:], a.loop.synapse
    like: dict[str, Any] = {"device": a.saved_u.device, "dtype": table.dtype}
    gx = torch.empty(a.shape, dtype=a.dtype, device=a.saved_u.device)
    gv0 = torch.empty(step_shape, **like) if a.needs_v0 else None
    gi0 = None if synapse is None else torch.empty(step_shape, **like)
    sums = torch.zeros(3, *step_shape, **like) if a.learns else None
    neuron = _Neuron(table, *a.encoded, a.learns)
    _launch(
        recurrent_bwd_kernel,
        a.shape,
        a.dtype,
        a.loop,
        neuron,
        ops.SAVED_FORMS[a.form],
        a.call.seed,
        a.call.p,
        **lif.backward_flags(neuron),
        p_saved=a.saved_u,
        p_current=a.current,
        p_v0=a.call.v0,
        p_matrix=a.loop.weight.to(a.dtype).contiguous(),
        p_g=a.g,
        p_gu=a.g_u,
        p_gv=a.g_v,
        p_gi=a.g_i,
        p_line=a.line,
        p_gx=gx,
        p_gv0=gv0,
        p_gi0=gi0,
        p_sums=sums,
        g_stride=0 if a.g is None else a.g.stride(0),
        gu_stride=0 if a.g_u is None else a.g_u.stride(0),
    )
    if sums is not None and table.shape[1] > 1:  # over samples and space, per channel
        dims = [d for d in range(1, sums.dim()) if d != 2]
        sums = sums.sum(dims, dtype=torch.float64)
    elif sums is not None:
        sums = sums.flatten(1).sum(1, keepdim=True, dtype=torch.float64)
    return Gradients(gx, gv0, gi0, sums)


def _launch(
    kernel: triton.JITFunction,
    shape: torch.Size,
    dtype: torch.dtype,
    loop: Loop,
    neuron: _Neuron,
    memory: str | None,
    seed: Tensor | None = None,
    p: Tensor | None = None,
    **arguments: object,
) -> None:
    grid, device = _Samples(shape, dtype), loop.weight.device
    synapse = None
    if loop.synapse is not None:
        synapse = ops.constants_table(loop.synapse[:2], neuron.constants.dtype, device)
        synapse = lif.moved(synapse, device)
    lif.launch(
        kernel,
        grid,
        **lif.kernel_arguments(grid, device, neuron, memory, seed, p),
        **arguments,
        p_synapse=synapse,
        n=grid.n,
        FORM=lif.form(memory, neuron),
        DEPTH=_DEPTH,
    )
