"""The recursion in C: one fused pass over all T per direction. Kept is the membrane, or less (see kept.py).

`lif.c` is built as a plain shared library per level of the processor and called through ctypes, inside two operators that are
opaque to torch.compile. Within a timestep elements are walked in the memory order of x, so that channels-last tensors and
inputs repeated over T (stride 0) are read as they lie.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import heap
from . import layout, operators
from .kept import pack, unpack
from .result import Result

if TYPE_CHECKING:
    from . import Call

_CHUNKS = 256  # sums are taken chunk by chunk; their number must not depend on the number of threads
_GRAIN = 16384  # element-steps that are worth a thread
_LEVELS = {"AVX512": ("_lif_v4", "_lif_v3", "_lif"), "AVX2": ("_lif_v3", "_lif")}
_LEVEL_NAMES = {"_lif_v4": "v4", "_lif_v3": "v3", "_lif": "baseline"}
_STREAM = 1 << 24  # bytes of a result from which on it is written past the cache
_SUFFIX = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16"}


class _Surrogate(ctypes.Structure):
    _fields_ = [("family", ctypes.c_int64), ("shape", ctypes.c_double), ("scale", ctypes.c_double)]


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Job(ctypes.Structure):
    """The struct of the same name in lif.c, which says what the fields mean."""

    _fields_ = [
        *_fields(ctypes.c_int64, "T N C inner per_channel depth area chunks threads"),
        *_fields(ctypes.c_int64, "soft decay_input temporal parametric masked rescale learns"),
        *_fields(ctypes.c_int64, "seed limit x_stride g_stride gu_stride keeps repeated streams fresh"),
        *_fields(ctypes.c_double, "v_reset rho keep reach"),
        *_fields(_Surrogate, "surrogate replace"),
        *_fields(ctypes.c_void_p, "p_constants p_x p_v0 p_s p_u p_v p_kept p_active p_scratch"),
        *_fields(ctypes.c_void_p, "p_g p_gu p_gv p_line p_gx p_gv0 p_partial p_sums"),
    ]


def _built() -> Iterator[tuple[str, ctypes.CDLL]]:
    """The libraries that this processor runs, as torch judges it (ATEN_CPU_CAPABILITY), the best first."""
    for name in _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("_lif",)):
        spec = importlib.util.find_spec(f"backspike.kernel.{name}")
        if spec is None or spec.origin is None:
            continue
        try:
            library = ctypes.CDLL(spec.origin)
            library.lif_digest.restype = ctypes.c_int64
        except (OSError, AttributeError):
            continue
        if _digest() in (None, library.lif_digest()):
            yield name, library


@lru_cache
def _digest() -> int | None:
    """Of the sources that lie beside this file in a checkout, as setup.py takes it; None where there are none."""
    folder = Path(__file__).parent
    sources = [path.read_bytes() for ending in "ch" for path in sorted(folder.glob(f"*.{ending}"))]
    return zlib.crc32(b"".join(sources)) if sources else None


def missing() -> str | None:
    """Why there is no C kernel; None if there is one."""
    if available():
        return None
    built = any(importlib.util.find_spec(f"backspike.kernel.{name}") for name in _LEVEL_NAMES)
    return "the C kernel was built from other sources; install again" if built else "the C kernel was not built on installation"


_c = next((library for _, library in _built()), None)


def levels() -> tuple[str, ...]:
    """What was built for this processor and for lesser ones: any of "v4", "v3", "baseline", the one in use first."""
    return tuple(_LEVEL_NAMES[name] for name, _ in _built())


@contextmanager
def level(name: str) -> Iterator[None]:
    """Within it, the library of this level computes; for checks, not for threads that compute meanwhile."""
    global _c
    before, _c = _c, {_LEVEL_NAMES[n]: library for n, library in _built()}[name]
    try:
        yield
    finally:
        _c = before


def available() -> bool:
    return _c is not None


def refuses(call: Call) -> str | None:
    tensors = (call.x, call.v0, call.tau, call.theta, call.width, call.seed, call.p)
    if any(isinstance(p, Tensor) and p.device.type != "cpu" for p in tensors):
        return f"it computes on the CPU, and the input is on {call.x.device}"
    name = operators.without_formula(call)
    return None if name is None else f"it has no formula in C for {name}"


def run(call: Call) -> Result:
    return operators.run("lif", call)


# ------------------------------------------------------------------------------------------------ the operators

operators.define("lif")


@torch.library.impl(operators.library, "lif_forward", "CPU")
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
    out = operators.forward_outputs(x, seed is not None, repeats, keeps, records)
    spikes, strides, active, sums = out.spikes, out.spikes.stride()[1:], out.active, out.moments
    x, v0 = layout.arranged(x, strides), layout.one(v0, strides)
    job = _job(spikes.shape, constants, strides, flags, numbers, x.element_size())
    job.x_stride = x.stride(0) if repeats == 1 else 0
    _remember(job, max(keeps, 0), flags, numbers)
    bits = active
    if active is not None:
        _mask(job, seed, p)
        if job.N % 8:  # the kernel fills the last byte of each timestep
            bits = torch.empty((job.T, (job.N + 7) // 8), dtype=torch.uint8)
    partial = None if sums is None else torch.zeros(job.chunks, sums.numel(), dtype=torch.float64)
    _set(job, x=x, v0=v0, s=spikes, u=out.membrane, v=out.state if records[4] else None, kept=out.kept, active=bits)
    _set(job, partial=partial, sums=sums)
    _call("lif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    if active is not None and bits is not None and bits is not active:
        active.copy_(pack(torch.cat([unpack(row, job.N) for row in bits])))
    return operators.given(out)


@torch.library.impl(operators.library, "lif_backward", "CPU")
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
        given = (kept, v0, x, constants, seed, p, g, g_v, g_u, line, shape, strides, flags, numbers, repeats, keeps, learns)
        outputs = _lif_backward(*given, torch.float32, needs_x, needs_v0)
        return [outputs[0].half(), *outputs[1:]] if needs_x else outputs
    out = operators.backward_outputs(constants, constants.device, shape, strides, repeats, learns, dtype, needs_x, needs_v0)
    x, g, g_u = (layout.arranged(a, strides) for a in (x, g, g_u))
    v0, g_v = layout.one(v0, strides), layout.one(g_v, strides)
    job = _job(shape, constants, strides, flags, numbers, dtype.itemsize)
    job.learns, job.repeated = learns, repeats > 1
    _remember(job, keeps, flags, numbers)
    _mask(job, seed, p)
    job.x_stride, job.g_stride, job.gu_stride = (0 if a is None else a.stride(0) for a in (x, g, g_u))
    if repeats > 1:
        job.x_stride = 0
    partial = None if out.sums is None else torch.zeros(job.chunks, out.sums.numel(), dtype=torch.float64)
    scratch = None
    if operators.KEEPS[keeps] == "recompute":
        scratch = torch.empty((job.threads, job.T, _c.lif_block()), dtype=constants.dtype)  # type: ignore[union-attr]
    _set(job, x=x, v0=v0, u=kept if keeps == 0 else None, kept=kept if keeps else None, scratch=scratch, line=line)
    _set(job, g=g, gu=g_u, gv=g_v, gx=out.gx, gv0=out.gv0, partial=partial, sums=out.sums)
    _call("lif_backward", dtype, job)
    return operators.given(out)


def _remember(job: _Job, keeps: int, flags: Sequence[int], numbers: Sequence[float]) -> None:
    job.keeps = keeps
    if operators.KEEPS[keeps] == "8bit":
        job.reach = operators.reach(*flags[-2:], *numbers[-4:])


def _mask(job: _Job, seed: Tensor | None, p: Tensor | None) -> None:
    if seed is not None and p is not None:
        job.masked, job.seed, job.limit, job.keep = 1, int(seed), round(float(p) * 2**24), 1 - float(p)


def _job(
    shape: Sequence[int], constants: Tensor, strides: Sequence[int], flags: Sequence[int], numbers: Sequence[float], size: int
) -> _Job:
    """What both directions need. shape: `[T, B, ...]`; strides: of a timestep; size: of an element of x in bytes."""
    here = _STREAM, _GRAIN, torch.get_num_threads(), heap.mode()
    template = _template(tuple(shape), constants.shape[1] > 1, tuple(strides), tuple(flags), tuple(numbers), size, *here)
    job = _Job.from_buffer_copy(template)
    job.p_constants = constants.data_ptr()
    return job


@lru_cache(maxsize=256)
def _template(
    shape: tuple[int, ...],
    per_channel: bool,
    strides: tuple[int, ...],
    flags: tuple[int, ...],
    numbers: tuple[float, ...],
    size: int,
    stream: int,
    grain: int,
    threads: int,
    mode: str,
) -> _Job:
    """The same for every call of a layer."""
    soft, decay_input, temporal, rescale, parametric, family, replace = flags
    v_reset, rho, form, scale, replace_form, replace_scale = numbers
    T, N, C, area = shape[0], math.prod(shape[1:]), shape[2] if len(shape) > 2 else 1, math.prod(shape[3:])
    inner = strides[1] if C > 1 else N
    depth = C if C > 1 and inner == 1 and area > 1 else 0
    return _Job(
        T=T,
        N=N,
        C=C,
        inner=inner,
        per_channel=per_channel,
        depth=depth,
        area=area,
        chunks=max(1, min(_CHUNKS, N // max(512, 16 * C))),
        threads=min(threads, 1 + T * N // grain),
        soft=soft,
        decay_input=decay_input,
        temporal=temporal,
        rescale=rescale,
        parametric=parametric,
        streams=T * N * size >= stream,
        fresh=mode != "kept",
        v_reset=v_reset,
        rho=rho,
        keep=1.0,
        surrogate=_Surrogate(family, form, scale),
        replace=_Surrogate(replace, replace_form, replace_scale),
    )


def _set(job: _Job, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(job, f"p_{name}", None if tensor is None else tensor.data_ptr())


def _call(name: str, dtype: torch.dtype, job: _Job) -> None:
    if job.N:
        getattr(_c, f"{name}_{_SUFFIX[dtype]}")(ctypes.byref(job))
