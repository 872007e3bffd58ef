"""Do all backends compute the same on this machine? `run()` holds them, case by case, to the definition in float64.

A case is one call of `bs.lif` with one value for every axis of `AXES`. Currents, states and gradients that arrive lie on a grid
of 1/64, where every membrane is exact in float32 (tau 2 with T <= 16, tau 4 with T <= 8) and some tie with the threshold. So
spikes, membranes and the mask have to be those of `kernel/reference.py` in float64 bit for bit; gradients, which autograd
derives there and other backends by hand, to rounding. Where the membrane is kept in fewer bits (memory="8bit", "bfloat16"),
gradients have to be those at the membrane as it is remembered (`saved.py`), to the same tolerance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import kernel
from ..errors import CertifyError
from ..kernel import Unsupported
from ..kernel.coefficients import leak, over_channels, rest, state_dtype
from ..kernel.cpu import library
from ..kernel.saved import ROUNDED, decode, reach
from ..kernel.saved import encode as kept_code
from ..neuron.prepare import prepare
from ..options import LIF
from ..surrogate import (
    FAMILIES,
    ATan,
    Dspike,
    Erf,
    Masked,
    Parametric,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Surrogate,
    Triangle,
)
from ..system.machine import machine
from .pairwise import Case, pairwise

# largest error of a gradient, ||g - g64|| / ||g64||; of what is learned and of the state, that of the dtype of the state
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPE = (T, B, C, H, W) = (
    5,
    3,
    4,
    7,
    9,
)  # 756 elements a timestep: more than a block of the C code, and no multiple of 8
SEED = 2**41 + 17

# No parameter is a default one; those with an edge have it on the grid. The plain value of each axis
# comes first. A surrogate that is not in this list is taken with its defaults.
_SURROGATES: tuple[Surrogate, ...] = (
    Rectangle(0.75, 1.25),
    Triangle(1.5),
    ATan(3.0),
    Sigmoid(3.0),
    SuperSpike(2.5),
    PiecewiseExponential(1.25),
    Erf(0.75),
    Dspike(4.0),
)
SURROGATES = {type(s).__name__: s for s in _SURROGATES}
SURROGATES |= {s.__name__: s() for s in FAMILIES if s.__name__ not in SURROGATES}
MASKS: dict[str, Callable[[Any], Surrogate]] = {
    "none": lambda base: base,
    "zero": lambda base: Masked(base, p=0.5),
    "replace": lambda base: Masked(base, p=0.5, replace=Rectangle(0.5)),
    "rescale": lambda base: Masked(base, p=0.375, rescale=True),
}
CONSTANTS = {
    "tau": [2.0, 4.0, 2.0, 4.0],
    "v_threshold": [0.75, 0.5, 1.0, 0.75],
    "width": [0.5, 2.0, 1.0, 0.5],
}
LEARNED: dict[str, tuple[str, ...]] = {
    "none": (),
    "width": ("width",),
    "threshold": ("v_threshold",),
    "tau": ("tau",),
    "per-channel": tuple(CONSTANTS),
}
AXES: dict[str, dict[str, Any]] = {
    "surrogate": SURROGATES,
    "v_reset": {"None": None, "0": 0.0, "-0.25": -0.25},
    "decay_input": {"True": True, "False": False},
    "reset_gradient": {"1": 1.0, "0": 0.0, "0.375": 0.375},
    "temporal_gradient": {"True": True, "False": False},
    "dtype": {
        str(d).removeprefix("torch."): d
        for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    "mask": MASKS,
    "learned": LEARNED,
    # "checkpoint" is "recompute" for a neuron alone
    "memory": {m: m for m in kernel.MEMORIES if m != "checkpoint"},
    # how it is called: from rest; from a state, with a gradient that arrives at the last one; with the membrane recorded, and a
    # gradient at it; channels last; with one timestep that stands for all
    "call": {name: name for name in ("plain", "state", "membrane", "channels-last", "repeats")},
}


@dataclass(frozen=True)
class Place:
    """Where calls run: a backend, on a device, in a build of the C kernel for a level of the processor."""

    backend: str
    device: str = "cpu"
    level: str = ""

    @property
    def name(self) -> str:
        return "-".join(
            part
            for part in (self.backend, self.level, "" if self.device == "cpu" else self.device)
            if part
        )

    def computes(self) -> AbstractContextManager[None]:
        return library.level(self.level) if self.level else nullcontext()


@dataclass(frozen=True)
class Finding:
    """What one case came to. errors: of the gradients, by name; reason: what is wrong, or ""."""

    case: Case
    errors: dict[str, float]
    mask: bool | None  # whether its bits are right; None where there is none, or it is not told
    reason: str = ""

    def command(self) -> str:
        """What repeats it alone."""
        return "backspike certify --only " + ",".join(
            f"{axis}={value}" for axis, value in self.case.items()
        )


@dataclass
class Row:
    """All cases of a place. errors: the largest of a gradient, by dtype."""

    cases: int = 0
    failed: int = 0
    masks: int = 0  # cases whose mask bits were compared
    errors: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(
        default_factory=list
    )  # why other combinations were not tried, each reason once

    def add(self, finding: Finding) -> None:
        self.cases += 1
        self.failed += bool(finding.reason)
        self.masks += finding.mask is not None
        dtype = finding.case["dtype"]
        self.errors[dtype] = max(self.errors.get(dtype, 0.0), *finding.errors.values(), 0.0)


@dataclass
class Certificate:
    """The rows by place, what failed, and the machine."""

    machine: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    failed: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(row.cases for row in self.rows.values())

    @property
    def passed(self) -> bool:
        return self.cases > 0 and not self.failed


Listener = Callable[[dict[str, Any]], None]


def run(
    only: Mapping[str, str] | None = None, *, all: bool = False, listen: Listener | None = None
) -> Certificate:
    """Checks every backend of this machine and returns the certificate.

    By default each backend meets every pair of values of `AXES` (`covering.pairwise`); all=True: every combination, which takes
    hours. only: values that axes are held to, `backend` among them, such as {"backend": "cpu", "dtype": "bfloat16"}. listen is
    called with an event, a dict, for the start and for each case. Raises CertifyError, a ValueError, where nothing is left.
    """
    there = {place.name: place for place in places()}
    axes = _held({"backend": dict(there), **AXES}, only or {})
    tell = listen or (lambda event: None)
    certificate = Certificate(machine(torch.get_num_threads()))
    work: list[tuple[Place, Iterable[Case]]] = []
    for name in axes.pop("backend"):
        row = certificate.rows[name] = Row()
        allowed = _allowed(there[name], row)
        work.append((there[name], _every(axes, allowed) if all else pairwise(axes, allowed)))
    tell(
        {
            "event": "start",
            "cases": None
            if all
            else sum(len(cases) for _, cases in work if isinstance(cases, list)),
        }
    )
    for place, cases in work:
        for case in cases:
            finding = check(place, {"backend": place.name, **case})
            certificate.rows[place.name].add(finding)
            certificate.failed += [finding] if finding.reason else []
            tell(
                {
                    "event": "case",
                    **finding.case,
                    "errors": finding.errors,
                    "mask": finding.mask,
                    "failed": finding.reason,
                }
            )
    if not certificate.cases:
        reasons = dict.fromkeys(
            reason for row in certificate.rows.values() for reason in row.refused
        )
        raise CertifyError(
            f"--only leaves no combination that a backend takes: {'; '.join(reasons)}"
        )
    return certificate


def places() -> list[Place]:
    """Every backend on every device that it takes, the C kernel also as built for lesser processors."""
    found = []
    for backend, device in itertools.product(
        kernel.backends(), ("cpu", *(["cuda"] if torch.cuda.is_available() else []))
    ):
        for level in library.levels()[1:] if backend == "cpu" and device == "cpu" else ():
            found.append(Place(backend, level=level))
        found.append(Place(backend, device))
    return [
        p
        for p in found
        if not _refusal(p, {axis: next(iter(values)) for axis, values in AXES.items()})
    ]


def _held(axes: dict[str, dict[str, Any]], only: Mapping[str, str]) -> dict[str, list[str]]:
    for axis, value in only.items():
        if axis not in axes:
            raise CertifyError(f"--only: no option {axis!r}; there are: {', '.join(axes)}")
        if value not in axes[axis]:
            raise CertifyError(f"--only: {axis} is one of {', '.join(axes[axis])}; got {value!r}")
    return {axis: [only[axis]] if axis in only else list(values) for axis, values in axes.items()}


def _allowed(place: Place, row: Row) -> Callable[[Case], bool]:
    """Whether the place takes a case; why not is noted in the row."""

    def allowed(case: Case) -> bool:
        reason = _refusal(place, case)
        if reason and reason not in row.refused:
            row.refused.append(reason)
        return not reason

    return allowed


def _every(axes: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> Iterator[Case]:
    # dtype and memory, which the definition does not know, change fastest
    slow = sorted(axes, key=lambda axis: axis in ("dtype", "memory"))
    for values in itertools.product(*(axes[axis] for axis in slow)):
        case = dict(zip(slow, values))
        if allowed(case):
            yield {axis: case[axis] for axis in axes}


# ------------------------------------------------------------------------------------------------------------- one case


def check(place: Place, case: Case) -> Finding:
    """Runs a case, a value for every axis of `AXES`, at a place, and compares it with the definition in float64."""
    want = _definition(
        case["memory"] if case["memory"] in ROUNDED else "exact", tuple(case[a] for a in _SHARED)
    )
    limits = _limits(case)
    try:
        with place.computes():
            got = _computed(place, case)
    except Exception as e:  # what a broken backend raises is a finding
        return Finding(
            case, {}, None, f"raised {type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
        )
    wrong = [
        f"{name} differ in {n} places"
        for name in ("spikes", "membranes", "states")
        if (n := _unequal(got, want, name))
    ]
    # a backend tells only of contiguous spikes
    mask = None if got["active"] is None else torch.equal(got["active"], want["active"])
    if mask is False:
        wrong.append("mask bits differ")
    errors = {name: _error(got[name], want[name]) for name in limits}
    for name, error in errors.items():
        if not error <= limits[name]:
            wrong.append(
                f"the gradient of {name} is off by {error:.2g}, more than {limits[name]:.2g}"
            )
    return Finding(case, errors, mask, "; ".join(wrong))


def _limits(case: Case) -> dict[str, float]:
    dtype = AXES["dtype"][case["dtype"]]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    others = [*LEARNED[case["learned"]], *(["v0"] if case["call"] == "state" else [])]
    return {"x": TOLERANCE[dtype]} | dict.fromkeys(others, TOLERANCE[wide])


@lru_cache(maxsize=8)
def _inputs(call: str) -> dict[str, Tensor | None]:
    """x, v0 and what arrives at spikes (g), membrane (gu) and state (c), on the grid, in float64.

    Gradients are mostly positive, so that sums of them do not cancel.
    """
    draw = torch.Generator().manual_seed(0)

    def grid(shape: Sequence[int]) -> Tensor:
        return torch.randint(-64, 192, tuple(shape), generator=draw).double() / 64

    x, g, gu, v0, c = grid(SHAPE), grid(SHAPE), grid(SHAPE), grid(SHAPE[1:]), grid(SHAPE[1:])
    given: dict[str, Tensor | None] = {"x": x, "v0": None, "g": g, "gu": None, "c": None}
    if call == "state":
        given |= {"v0": v0 / 4, "c": c}
    elif call == "membrane":
        given |= {"gu": gu}
    elif call == "repeats":
        given |= {"x": x[:1]}
    elif call == "channels-last":
        given |= {"x": x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)}
    return given


def _neuron(case: Case) -> LIF:
    base = AXES["surrogate"][case["surrogate"]]
    mask = MASKS[case["mask"]]
    options = {
        name: AXES[name][case[name]]
        for name in ("v_reset", "decay_input", "reset_gradient", "temporal_gradient", "memory")
    }
    wrapped = mask(Parametric(base) if "width" in LEARNED[case["learned"]] else base)
    return LIF(surrogate=wrapped, **options)


def _constants(case: Case, dtype: torch.dtype, device: str) -> kernel.Constants:
    """tau, threshold and width: numbers, or leaves that learn, in the dtype of the state."""
    names, per_channel = LEARNED[case["learned"]], case["learned"] == "per-channel"
    constants: dict[str, Any] = {
        "tau": CONSTANTS["tau"][0],
        "v_threshold": CONSTANTS["v_threshold"][0],
    }
    for name in names:
        value = CONSTANTS[name] if per_channel else CONSTANTS[name][0]
        constants[name] = torch.tensor(value, dtype=dtype, device=device, requires_grad=True)
    return kernel.Constants(**constants)


def _refusal(place: Place, case: Case) -> str:
    """Why there is no such neuron, or why this backend does not take it; "" where it does."""
    if place.backend == "reference" and case["memory"] != "exact":
        return "reference: it keeps a graph whatever memory says, so only memory=exact counts"
    dtype = AXES["dtype"][case["dtype"]]
    x = torch.zeros((1, 1, C), dtype=dtype, device=place.device)
    constants = _constants(case, state_dtype(x), place.device)
    try:
        kernel.choose(place.backend, prepare(x, None, _neuron(case), constants, SEED))
    except (ValueError, Unsupported) as e:
        return str(e)
    return ""


def _computed(
    place: Place, case: Case, record_membrane: bool = False, x: Tensor | None = None
) -> dict[str, Any]:
    """Outputs and gradients of a case, and the call. x: all timesteps, in place of the case's."""
    dtype = AXES["dtype"][case["dtype"]]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    given = {k: None if a is None else a.to(place.device) for k, a in _inputs(case["call"]).items()}
    leaf = {
        k: None if (a := given[k]) is None else a.to(d).detach().requires_grad_()
        for k, d in (("x", dtype), ("v0", state))
    }
    constants = _constants(case, state, place.device)
    record = kernel.Record(membrane=record_membrane or case["call"] == "membrane")
    current = leaf["x"] if x is None else x
    assert current is not None
    repeats = T if case["call"] == "repeats" and x is None else 1
    call = prepare(
        current, leaf["v0"], _neuron(case), constants, SEED, repeats=repeats, record=record
    )
    out = kernel.dispatch(place.backend, call)
    arriving = (
        (out.spikes, given["g"], dtype),
        (out.state, given["c"], state),
        (out.membrane, given["gu"], state),
    )
    entered = [(a, g.to(d)) for a, g, d in arriving if a is not None and g is not None]
    torch.autograd.backward([a for a, _ in entered], [g for _, g in entered])
    result = {"spikes": out.spikes, "states": out.state, "membranes": out.membrane, "active": None}
    result |= {
        name: p.grad
        for name, p in (*leaf.items(), *constants._asdict().items())
        if isinstance(p, Tensor)
    }
    if case["mask"] != "none":
        active = replace(call, record=record._replace(active=True))
        result["active"] = kernel.dispatch(place.backend, active).active
    return {"call": call} | {k: None if a is None else a.detach().cpu() for k, a in result.items()}


_SHARED = tuple(
    axis for axis in AXES if axis not in ("dtype", "memory")
)  # what the definition depends on


@lru_cache(maxsize=64)
def _definition(memory: str, values: tuple[str, ...]) -> dict[str, Any]:
    """What the definition gives in float64, at the membranes as this memory remembers them."""
    case = dict(zip(_SHARED, values), dtype="float64", memory="exact")
    exact = _computed(Place("reference"), case, record_membrane=True)
    if memory == "exact":
        return exact
    call = exact["call"]
    theta, width = (
        over_channels(p.detach(), call.x) if isinstance(p, Tensor) else p
        for p in (call.theta, call.width)
    )
    end = reach(call.neuron.base, call.neuron.replace)
    u = decode(
        memory,
        kept_code(memory, exact["membranes"], theta, width, end),
        theta,
        width,
        end,
        torch.float64,
    )
    x = _currents(u, exact["spikes"], call)
    remembered = _computed(Place("reference"), case, record_membrane=True, x=x)
    gx = x.grad
    assert gx is not None
    if "tau" in remembered and call.neuron.decay_input:
        # du/dtau has the current as it came, not the one that leads to what is remembered
        gain = leak(call.tau.detach(), call.x, call.neuron.v_reset, True).gain
        came = (gx / gain * (x - call.x)).detach() / over_channels(call.tau.detach(), call.x) ** 2
        remembered["tau"] = remembered["tau"] + (
            came.sum((0, 1, 3, 4)) if call.tau.dim() else came.sum()
        )
    remembered["x"] = gx.sum(0, keepdim=True) if call.repeats > 1 else gx
    return exact | {
        name: remembered[name] for name in ("x", "v0", "active", *CONSTANTS) if name in remembered
    }


def _currents(u: Tensor, spikes: Tensor, call: kernel.Call) -> Tensor:
    """The currents `[T, B, ...]` that lead to these membranes, the first from the state of the call; exact on the grid."""
    neuron = call.neuron
    tau, theta = (p.detach() if isinstance(p, Tensor) else p for p in (call.tau, call.theta))
    lam, offset, gain = leak(tau, call.x, neuron.v_reset, neuron.decay_input)
    start = torch.full_like(u[0], rest(neuron.v_reset)) if call.v0 is None else call.v0.detach()
    after = (
        u - over_channels(theta, u) * spikes
        if neuron.v_reset is None
        else torch.where(spikes > 0, neuron.v_reset, u)
    )
    return ((u - (lam * torch.cat((start[None], after[:-1])) + offset)) / gain).requires_grad_()


def _unequal(got: dict[str, Any], want: dict[str, Any], name: str) -> int:
    """In how many places they differ; what was not asked for cannot."""
    if got[name] is None:
        return 0
    if got[name].shape != want[name].shape:
        return want[name].numel()
    return int((got[name].double() != want[name]).sum())


def _error(got: Tensor | None, want: Tensor | None) -> float:
    """||got - want|| / ||want||; autograd's None, where it finds no path, is zero."""
    if want is None:
        return 0.0 if got is None or not got.any() else math.inf
    got = torch.zeros_like(want) if got is None else got.double()
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    difference, size = (got - want).norm().item(), want.norm().item()
    return difference / size if size else (0.0 if difference == 0 else math.inf)
