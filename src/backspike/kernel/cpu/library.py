"""The library of C kernels: the build for this processor, and `Job`, the kernels' argument."""

from __future__ import annotations

import ctypes
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ...system import heap
from .. import ops

# sums are computed chunk by chunk; the number of chunks must not depend on the number of threads
CHUNKS = 256
GRAIN = 16384  # elements times timesteps per thread, below which another thread does not pay
_LEVELS = {"AVX512": ("_lif_v4", "_lif_v3", "_lif"), "AVX2": ("_lif_v3", "_lif")}
_LEVEL_NAMES = {"_lif_v4": "v4", "_lif_v3": "v3", "_lif": "baseline"}
# setup.py names the files; they use no part of Python, so one serves every version
ENDING = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
# Results of at least this many bytes fill the second-level cache, and are written past it.
STREAM = 1 << 21
SUFFIX = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16"}


class CSurrogate(ctypes.Structure):
    """The struct Surrogate of surrogate.h."""

    _fields_ = [("code", ctypes.c_int64), ("constants", ctypes.c_double * 3)]


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """The `_fields_` of a ctypes structure: names separated by spaces, all of the same type."""
    return [(name, kind) for name in names.split()]


class Job(ctypes.Structure):
    """The struct of the same name in lif.h, where the fields are documented."""

    _fields_ = [
        *fields(ctypes.c_int64, "T N C inner per_channel depth area chunks threads"),
        *fields(
            ctypes.c_int64, "soft decay_input temporal parametric masked rescale learns adapts"
        ),
        *fields(
            ctypes.c_int64,
            "seed limit x_stride g_stride gu_stride keeps repeated logarithmic streams fresh",
        ),
        *fields(ctypes.c_double, "v_reset rho keep unit"),
        *fields(CSurrogate, "surrogate replace"),
        *fields(ctypes.c_void_p, "p_constants p_x p_v0 p_s p_u p_v p_kept p_active p_scratch"),
        *fields(ctypes.c_void_p, "p_g p_gu p_gv p_line p_gx p_gv0 p_partial p_sums"),
    ]


def _file(name: str) -> Path:
    return Path(__file__).parents[1] / f"{name}{ENDING}"


def _names() -> tuple[str, ...]:
    """The libraries that this processor could run, the best first.

    torch decides what the processor supports; ATEN_CPU_CAPABILITY overrides it.
    """
    names = _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("_lif",))
    return tuple(name for name in names if _file(name).exists())


def _load(name: str) -> ctypes.CDLL | str:
    """The library, or why it cannot be used."""
    try:
        library = ctypes.CDLL(str(_file(name)))
        library.lif_digest.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        return f"the C kernel cannot be loaded ({error}); reinstall backspike for this machine"
    if _digest() in (None, library.lif_digest()):
        return library
    return "the C kernel was compiled from different sources; reinstall backspike"


def _built() -> Iterator[tuple[str, ctypes.CDLL]]:
    """The libraries that this processor can run, the best first."""
    for name in _names():
        if isinstance(library := _load(name), ctypes.CDLL):
            yield name, library


@lru_cache
def _digest() -> int | None:
    """The digest of the C sources in a checkout, as setup.py computes it; None without sources."""
    folder = Path(__file__).parents[1] / "csrc"
    sources = [path.read_bytes() for ending in "ch" for path in sorted(folder.glob(f"*.{ending}"))]
    return zlib.crc32(b"".join(sources)) if sources else None


def missing() -> str | None:
    """Why there is no C kernel; None if there is one."""
    if available():
        return None
    reasons = (reason for reason in map(_load, _names()) if isinstance(reason, str))
    return next(
        reasons,
        "the C kernel was not compiled during installation; "
        "install a C compiler (gcc or clang), then reinstall backspike",
    )


_level, _c = next(_built(), (None, None))


def levels() -> tuple[str, ...]:
    """The builds that this processor can run: of "v4", "v3", "baseline", the active one first."""
    return tuple(_LEVEL_NAMES[name] for name, _ in _built())


@contextmanager
def level(name: str) -> Iterator[None]:
    """Use the build of this level inside the context.

    For checks: it is not safe while other threads compute.
    """
    global _level, _c
    before = _level, _c
    _level, _c = {_LEVEL_NAMES[n]: (n, library) for n, library in _built()}[name]
    try:
        yield
    finally:
        _level, _c = before


def active_level() -> str:
    """The level of the library in use, or the best of this processor if there is no library."""
    best, *_ = _LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("_lif",))
    return _LEVEL_NAMES[_level or best]


def available() -> bool:
    """Whether a C library was loaded."""
    return _c is not None


def function(name: str, dtype: torch.dtype | None = None) -> Callable[..., int]:
    """A C function that returns an integer; with a dtype, the variant compiled for that dtype."""
    c_function = getattr(_c, name if dtype is None else f"{name}_{SUFFIX[dtype]}")
    c_function.restype = ctypes.c_int64
    return c_function


def set_form(job: Job, form: int, flags: Sequence[int], numbers: Sequence[float]) -> None:
    """Set the form in which the membrane is saved, an index into `ops.SAVED_FORMS`."""
    job.keeps = form
    if ops.SAVED_FORMS[form] == "8bit":
        job.unit, job.logarithmic = ops.eight_bits(tuple(flags), tuple(numbers))


def set_mask(job: Job, seed: Tensor | None, p: Tensor | None) -> None:
    """Set the mask of MSG, unless there is none."""
    if seed is not None and p is not None:
        job.masked = 1
        job.seed = int(seed)
        job.limit = round(float(p) * 2**24)
        job.keep = 1 - float(p)


def make_job(
    shape: Sequence[int],
    constants: Tensor,
    strides: Sequence[int],
    flags: Sequence[int],
    numbers: Sequence[float],
    size: int,
) -> Job:
    """The job with all that both directions need.

    shape: `[T, B, ...]`; strides: those of a timestep; size: bytes per element of x.
    """
    environment = STREAM, GRAIN, torch.get_num_threads(), heap.mode()
    template = job_template(
        tuple(shape),
        constants.shape[1] > 1,
        tuple(strides),
        tuple(flags),
        tuple(numbers),
        size,
        *environment,
    )
    job = Job.from_buffer_copy(template)
    job.p_constants = constants.data_ptr()
    job.adapts = ops.states(constants) > 1
    return job


@lru_cache(maxsize=256)
def job_template(
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
) -> Job:
    """The part of a job that is the same for every call of a layer."""
    soft, decay_input, temporal, rescale, parametric, *_ = flags
    v_reset, rho, *_ = numbers
    surrogate, replace = (
        CSurrogate() if s is None else CSurrogate(s.code, s.constants())
        for s in ops.surrogates(flags, numbers)
    )
    T, N = shape[0], math.prod(shape[1:])
    C = shape[2] if len(shape) > 2 else 1
    area = math.prod(shape[3:])
    inner = strides[1] if C > 1 else N
    depth = C if C > 1 and inner == 1 and area > 1 else 0
    return Job(
        T=T,
        N=N,
        C=C,
        inner=inner,
        per_channel=per_channel,
        depth=depth,
        area=area,
        chunks=max(1, min(CHUNKS, N // max(512, 16 * C))),
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
        surrogate=surrogate,
        replace=replace,
    )


def partial_sums(job: Job, sums: Tensor | None) -> Tensor | None:
    """Room for `sums` of each chunk, which the kernel then adds up in the order of the chunks."""
    if sums is None:
        return None
    return torch.zeros(job.chunks, sums.numel(), dtype=torch.float64, device="cpu")


def replay_scratch(job: Job, dtype: torch.dtype) -> Tensor | None:
    """Room for the rows that the backward pass of `lif.c` computes again; None if it needs none."""
    rows = function("lif_replays")(ctypes.byref(job))
    shape = (job.threads, rows, job.T, function("lif_block")())
    return torch.empty(shape, dtype=dtype, device="cpu") if rows else None


def set_pointers(job: ctypes.Structure, **tensors: Tensor | None) -> None:
    """Set the field p_NAME of the job to the data of the tensor NAME, or to NULL."""
    for name, tensor in tensors.items():
        setattr(job, f"p_{name}", None if tensor is None else tensor.data_ptr())


def call(name: str, dtype: torch.dtype, job: Job) -> None:
    """Call the variant of a C function for this dtype, unless the job is empty."""
    if job.N:
        function(name, dtype)(ctypes.byref(job))
