"""The recursion in C: one fused pass over all T per direction. Kept is the membrane, or less (see kept.py).

`lif.c` is built as a plain shared library per level of the processor and called through ctypes, inside two operators that are
opaque to torch.compile. Within a timestep elements are walked in the memory order of x, so that channels-last tensors and
inputs repeated over T (stride 0) are read as they lie.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..surrogate import ATan, Dspike, Erf, PiecewiseExponential, Rectangle, Sigmoid, SuperSpike, Surrogate, Triangle
from .constants import leak, state_dtype
from .kept import pack, reach, unpack
from .moments import Moments
from .result import Result

if TYPE_CHECKING:
    from . import Call

# the number of the family in lif.c, where 0 is none, and the field that gives its shape
_FAMILIES: dict[type, tuple[int, str]] = {
    Triangle: (1, "alpha"),
    ATan: (2, "alpha"),
    Rectangle: (3, "width"),
    Sigmoid: (4, "alpha"),
    SuperSpike: (5, "alpha"),
    PiecewiseExponential: (6, "alpha"),
    Erf: (7, "alpha"),
    Dspike: (8, "temperature"),
}
_CHUNKS = 256  # sums are taken chunk by chunk; their number must not depend on the number of threads
_GRAIN = 16384  # element-steps that are worth a thread
_LEVELS = {"AVX512": ("_lif_v4", "_lif_v3", "_lif"), "AVX2": ("_lif_v3", "_lif")}
_LEVEL_NAMES = {"_lif_v4": "v4", "_lif_v3": "v3", "_lif": "baseline"}
_KEEPS = ("exact", "bfloat16", "8bit", "1bit", "recompute")  # in the order of lif.h
_CODES = {1: torch.bfloat16, 2: torch.uint8, 3: torch.uint8}
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
        *_fields(ctypes.c_int64, "seed limit x_stride g_stride gu_stride keeps repeated streams"),
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
            library.lif_job_size.restype = ctypes.c_int64
        except (OSError, AttributeError):
            continue
        if library.lif_job_size() == ctypes.sizeof(_Job):  # else it was built from other sources
            yield name, library


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
    for surrogate in (call.rule.surrogate, call.rule.replace):
        if surrogate is not None and type(surrogate) not in _FAMILIES:
            return f"it has no formula in C for {type(surrogate).__name__}"
    return None


def run(call: Call) -> Result:
    rule = call.rule
    learned = (call.x, call.v0, call.tau, call.theta, call.width)
    if torch.is_grad_enabled() and any(isinstance(p, Tensor) and p.requires_grad for p in learned):
        spikes, state, membrane, moments, active = _LIF.apply(call, *learned)
    else:
        spikes, state, membrane, moments, _, active = _forward(call, _constants(call), *_encode(call), keeps=-1)
    return Result(
        spikes, state, membrane if rule.record_membrane else None, Moments(*moments) if rule.record_moments else None, active
    )


def _forward(call: Call, constants: Tensor, flags: list[int], numbers: list[float], keeps: int) -> list[Any]:
    """[spikes, state, membrane, moments `[2, T, C]`, what is kept, active]; None for what is not asked for.

    keeps: an index of `_KEEPS`, or -1 for nothing.
    """
    rule = call.rule
    records = [rule.record_membrane or keeps == 0, rule.record_moments, rule.record_active and keeps >= 0]
    outputs = iter(
        torch.ops.backspike.lif_forward(
            call.x, call.v0, constants, call.seed, call.p, flags, numbers, call.repeats, keeps, records
        )
    )
    asked = (True, True, *records[:2], keeps in _CODES, records[2])
    return [next(outputs, None) if wanted else None for wanted in asked]


def _constants(call: Call) -> Tensor:
    """lam, offset, gain, theta and width in the state's dtype: `[5, C]`, or `[5, 1]` when none is per channel."""
    width = 1.0 if call.width is None else call.width
    rows = [*leak(call.tau, call.x, call.rule.v_reset, call.rule.decay_input), call.theta, width]
    return _table(rows, state_dtype(call.x))


def _table(rows: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Floats and tensors as rows of one tensor without a graph, `[rows, C]` or `[rows, 1]`."""
    if not any(isinstance(row, Tensor) for row in rows):
        return torch.tensor(rows, dtype=dtype).view(-1, 1)
    tensors = [row.detach() if isinstance(row, Tensor) else torch.tensor(row, dtype=torch.float64) for row in rows]
    return torch.stack(torch.broadcast_tensors(*[row.to(dtype).reshape(-1) for row in tensors]))


def _encode(call: Call) -> tuple[list[int], list[float]]:
    """A rule in numbers, for the operators; `_job` reads them."""
    rule = call.rule
    switches = (rule.v_reset is None, rule.decay_input, rule.temporal_gradient, rule.rescale, call.width is not None)
    flags = [int(switch) for switch in switches]
    numbers = [0.0 if rule.v_reset is None else rule.v_reset, rule.reset_gradient]
    for surrogate in (rule.surrogate, rule.replace):
        family, shape, scale = _family(surrogate)
        flags.append(family)
        numbers += [shape, scale]
    return flags, numbers


def _family(surrogate: Surrogate | None) -> tuple[int, float, float]:
    if surrogate is None:
        return 0, 1.0, 1.0
    family, shape = _FAMILIES[type(surrogate)]
    return family, float(getattr(surrogate, shape)), float(getattr(surrogate, "scale"))  # noqa: B009  (not in the protocol)


class _LIF(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *learned: Any) -> Any:
        constants, rule, keeps = _constants(call), _encode(call), _KEEPS.index(call.rule.memory)
        spikes, state, membrane, moments, kept, active = _forward(call, constants, *rule, keeps)
        keeps_x = call.rule.memory == "recompute" or (isinstance(call.tau, Tensor) and call.rule.decay_input)
        tensors = [p if isinstance(p, Tensor) else None for p in learned[2:]]
        kept = membrane if keeps == 0 else kept
        ctx.save_for_backward(kept, call.v0, call.x if keeps_x else None, constants, call.seed, call.p, *tensors)
        ctx.rule, ctx.repeats, ctx.keeps, ctx.x_dtype = rule, call.repeats, keeps, call.x.dtype
        ctx.shape, ctx.strides = spikes.shape, state.stride()
        ctx.records = call.rule.record_membrane, call.rule.record_moments
        if active is not None:
            ctx.mark_non_differentiable(active)
        ctx.set_materialize_grads(False)
        return spikes, state, membrane, moments, active

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_v: Tensor | None, g_u: Tensor | None, g_moments: Tensor | None, _: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("backspike: double backward through a spiking layer is not defined; use create_graph=False")
        kept, v0, x, constants, seed, p, *parameters = ctx.saved_tensors
        _, needs_x, needs_v0, *needs = ctx.needs_input_grad
        learns = sum(1 << i for i, needed in enumerate(needs) if needed)
        # what was not asked for gets zeros, not None, in compiled code
        g_u = g_u if ctx.records[0] else None
        line = _line(g_moments, ctx.shape, constants.dtype) if ctx.records[1] and g_moments is not None else None
        g_v0, *others = torch.ops.backspike.lif_backward(
            kept, v0, x, constants, seed, p, g, g_v, g_u, line,
            ctx.shape, ctx.strides, *ctx.rule, ctx.repeats, ctx.keeps, learns, ctx.x_dtype, needs_x,
        )  # fmt: skip
        gx = others.pop(0) if needs_x else None
        grads: list[Tensor | None] = [None, None, None]
        if learns:
            (sums,) = others
            grads = [_reduced(row, parameter) if needed else None for row, parameter, needed in zip(sums, parameters, needs)]
        if needs[0]:
            grads[0] = _reduced(sums[0] / parameters[0].double() ** 2, parameters[0])
        return None, gx, g_v0 if needs_v0 else None, *grads


def _line(g_moments: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """a and b, `[2, T, C]`: what arrives at the moments reaches u as gu = a + b u."""
    n = max(math.prod(shape[1:]) // max(g_moments.shape[2], 1), 1)
    return torch.stack((g_moments[0] / n, g_moments[1] * (2 / n))).to(dtype)


def _reduced(row: Tensor, parameter: Tensor) -> Tensor:
    """A row of sums in the shape of what learns: one alone, one per channel, or one for all channels."""
    return (row if parameter.dim() else row.sum()).view(parameter.shape).to(parameter.dtype)


# ------------------------------------------------------------------------------------------------ the operators

_library = torch.library.Library("backspike", "FRAGMENT")
_library.define(
    "lif_forward(Tensor x, Tensor? v0, Tensor constants, Tensor? seed, Tensor? p, int[] flags, float[] numbers, SymInt repeats,"
    " int keeps, bool[] records) -> Tensor[]"
)
_library.define(
    "lif_backward(Tensor? kept, Tensor? v0, Tensor? x, Tensor constants, Tensor? seed, Tensor? p, Tensor? g, Tensor? g_v,"
    " Tensor? g_u, Tensor? line, SymInt[] shape, SymInt[] strides, int[] flags, float[] numbers, SymInt repeats, int keeps,"
    " int learns, ScalarType dtype, bool needs_x) -> Tensor[]"
)


class _Forward(NamedTuple):
    """What the operators write; they return what is not None."""

    spikes: Tensor
    state: Tensor
    membrane: Tensor | None
    moments: Tensor | None
    kept: Tensor | None
    active: Tensor | None


class _Backward(NamedTuple):
    gv0: Tensor
    gx: Tensor | None
    sums: Tensor | None  # [3, C]


def _given(outputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [a for a in outputs if a is not None]


def _forward_outputs(x: Tensor, masked: bool, repeats: int, keeps: int, records: Sequence[bool]) -> _Forward:
    strides, dtype, device = _order(x[0], masked), state_dtype(x), x.device
    shape = (x.shape[0] * repeats, *x.shape[1:])
    membrane, moments, active = records
    spikes, kept = _empty(shape, strides, x.dtype, device), None
    if keeps in _CODES:
        bits = (shape[0], (math.prod(shape[1:]) + 7) // 8)
        kept = _empty(bits if keeps == 3 else shape, (1,) if keeps == 3 else strides, _CODES[keeps], device)
    return _Forward(
        spikes,
        torch.empty_strided(shape[1:], strides, dtype=dtype, device=device),
        _empty(shape, strides, dtype, device) if membrane else None,
        torch.zeros((2, shape[0], _channels(x)), dtype=torch.float64, device=device) if moments else None,
        kept,
        torch.empty((math.prod(shape) + 7) // 8, dtype=torch.uint8, device=device)
        if active and spikes.is_contiguous()
        else None,
    )


def _backward_outputs(
    constants: Tensor,
    shape: Sequence[int],
    strides: Sequence[int],
    repeats: int,
    learns: int,
    dtype: torch.dtype,
    needs_x: bool,
) -> _Backward:
    device = constants.device
    return _Backward(
        torch.empty_strided(shape[1:], strides, dtype=constants.dtype, device=device),
        _empty((shape[0] // repeats, *shape[1:]), strides, dtype, device) if needs_x else None,
        torch.zeros((3, constants.shape[1]), dtype=torch.float64, device=device) if learns else None,
    )


@torch.library.register_fake("backspike::lif_forward", lib=_library)
def _(x: Any, v0: Any, constants: Any, seed: Any, p: Any, flags: Any, numbers: Any, *rest: Any) -> Any:
    return _given(_forward_outputs(x, seed is not None, *rest))


@torch.library.register_fake("backspike::lif_backward", lib=_library)
def _(kept: Any, v0: Any, x: Any, constants: Any, seed: Any, p: Any, g: Any, g_v: Any, g_u: Any, line: Any, *rest: Any) -> Any:
    shape, strides, _, _, repeats, _, learns, dtype, needs_x = rest
    return _given(_backward_outputs(constants, shape, strides, repeats, learns, dtype, needs_x))


@torch.library.impl(_library, "lif_forward", "CPU")
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
    out = _forward_outputs(x, seed is not None, repeats, keeps, records)
    spikes, strides, active, sums = out.spikes, out.state.stride(), out.active, out.moments
    x, v0 = _arranged(x, strides), _one(v0, strides)
    job = _job(spikes.shape, constants, strides, flags, numbers, x.element_size())
    job.x_stride = x.stride(0) if repeats == 1 else 0
    _remember(job, max(keeps, 0), flags, numbers)
    bits = active
    if active is not None:
        _mask(job, seed, p)
        if job.N % 8:  # the kernel fills the last byte of each timestep
            bits = torch.empty((job.T, (job.N + 7) // 8), dtype=torch.uint8)
    partial = None if sums is None else torch.zeros(job.chunks, sums.numel(), dtype=torch.float64)
    _set(job, x=x, v0=v0, s=spikes, u=out.membrane, v=out.state, kept=out.kept, active=bits, partial=partial, sums=sums)
    _call("lif_forward", x.dtype, job)
    if sums is not None:
        sums /= job.N // max(job.C, 1)
    if active is not None and bits is not None and bits is not active:
        active.copy_(pack(torch.cat([unpack(row, job.N) for row in bits])))
    return _given(out)


@torch.library.impl(_library, "lif_backward", "CPU")
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
) -> Any:
    if dtype == torch.float16:
        x, g = (None if a is None else a.float() for a in (x, g))
        given = (kept, v0, x, constants, seed, p, g, g_v, g_u, line, shape, strides, flags, numbers, repeats, keeps, learns)
        g_v0, *others = _lif_backward(*given, torch.float32, needs_x)
        return [g_v0, *(a.half() if a.dtype == torch.float32 else a for a in others)]
    out = _backward_outputs(constants, shape, strides, repeats, learns, dtype, needs_x)
    x, g, g_u = (_arranged(a, strides) for a in (x, g, g_u))
    v0, g_v = _one(v0, strides), _one(g_v, strides)
    job = _job(shape, constants, strides, flags, numbers, dtype.itemsize)
    job.learns, job.repeated = learns, repeats > 1
    _remember(job, keeps, flags, numbers)
    _mask(job, seed, p)
    job.x_stride, job.g_stride, job.gu_stride = (0 if a is None else a.stride(0) for a in (x, g, g_u))
    if repeats > 1:
        job.x_stride = 0
    partial = None if out.sums is None else torch.zeros(job.chunks, out.sums.numel(), dtype=torch.float64)
    scratch = None
    if _KEEPS[keeps] == "recompute":
        scratch = torch.empty((job.threads, job.T, _c.lif_block()), dtype=constants.dtype)  # type: ignore[union-attr]
    _set(job, x=x, v0=v0, u=kept if keeps == 0 else None, kept=kept if keeps else None, scratch=scratch, line=line)
    _set(job, g=g, gu=g_u, gv=g_v, gx=out.gx, gv0=out.gv0, partial=partial, sums=out.sums)
    _call("lif_backward", dtype, job)
    return _given(out)


def _remember(job: _Job, keeps: int, flags: Sequence[int], numbers: Sequence[float]) -> None:
    job.keeps = keeps
    if _KEEPS[keeps] == "8bit":
        job.reach = _reach(*flags[-2:], *numbers[-4:])


@lru_cache(maxsize=256)
def _reach(family: int, replace: int, form: float, scale: float, replace_form: float, replace_scale: float) -> float:
    kinds = {number: kind for kind, (number, _) in _FAMILIES.items()}
    other = kinds[replace](replace_form, replace_scale) if replace else None
    return reach(kinds[family](form, scale), other).item()


def _mask(job: _Job, seed: Tensor | None, p: Tensor | None) -> None:
    if seed is not None and p is not None:
        job.masked, job.seed, job.limit, job.keep = 1, int(seed), round(float(p) * 2**24), 1 - float(p)


def _channels(x: Tensor) -> int:
    return x.shape[2] if x.dim() > 2 else 1


def _order(step: Tensor, masked: bool = False) -> tuple[int, ...]:
    """The strides in which a timestep is walked: its own if it lies densely, else, or if the mask could not follow, C order."""
    if step.is_contiguous() or (_channels_last(step) if masked else _dense(step)):
        return step.stride()
    return torch.empty(step.shape, device="meta").stride()


def _dense(step: Tensor) -> bool:
    size = 1
    for stride, n in sorted((stride, n) for stride, n in zip(step.stride(), step.shape) if n != 1):
        if stride != size:
            return False
        size *= n
    return True


def _channels_last(step: Tensor) -> bool:
    return step.dim() > 2 and step.movedim(1, -1).is_contiguous()


def _empty(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[T, B, ...]` with these strides of a timestep."""
    return torch.empty_strided(shape, (math.prod(shape[1:]), *strides), dtype=dtype, device=device)


def _arranged(a: Tensor | None, strides: Sequence[int]) -> Tensor | None:
    """a `[T, B, ...]`, each timestep with these strides; T may have any."""
    if a is None or all(n == 1 or i == j for n, i, j in zip(a.shape[1:], a.stride()[1:], strides)):
        return a
    return _empty(a.shape, strides, a.dtype, a.device).copy_(a)


def _one(a: Tensor | None, strides: Sequence[int]) -> Tensor | None:
    arranged = None if a is None else _arranged(a[None], strides)
    return None if arranged is None else arranged[0]


def _job(
    shape: Sequence[int], constants: Tensor, strides: Sequence[int], flags: Sequence[int], numbers: Sequence[float], size: int
) -> _Job:
    """What both directions need. shape: `[T, B, ...]`; strides: of a timestep; size: of an element of x in bytes."""
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
        per_channel=constants.shape[1] > 1,
        depth=depth,
        area=area,
        chunks=max(1, min(_CHUNKS, N // max(512, 16 * C))),
        threads=min(torch.get_num_threads(), 1 + T * N // _GRAIN),
        soft=soft,
        decay_input=decay_input,
        temporal=temporal,
        rescale=rescale,
        parametric=parametric,
        streams=T * N * size >= _STREAM,
        v_reset=v_reset,
        rho=rho,
        keep=1.0,
        surrogate=_Surrogate(family, form, scale),
        replace=_Surrogate(replace, replace_form, replace_scale),
        p_constants=constants.data_ptr(),
    )


def _set(job: _Job, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        setattr(job, f"p_{name}", None if tensor is None else tensor.data_ptr())


def _call(name: str, dtype: torch.dtype, job: _Job) -> None:
    if job.N:
        getattr(_c, f"{name}_{_SUFFIX[dtype]}")(ctypes.byref(job))
