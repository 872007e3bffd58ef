"""Do all backends on this machine agree? `run()` compares them with the definition in float64.

A case is one call of `bs.lif` with one value for every axis of `AXES`. Currents, states and
incoming gradients are multiples of 1/64, for which every membrane is exact in float32 (tau 2 with
T <= 16, tau 4 with T <= 8) and some equal the threshold. So spikes, membranes and the mask must be
bit-identical to those of `kernel/reference.py` in float64, and NaN where those are. Gradients,
which autograd derives there and other backends compute by hand, must agree to rounding. If the
membrane is saved for backward in fewer bits (memory="8bit", "bfloat16"), gradients must be those at
the decoded membrane (`saved.py`), to the same tolerance; `networks.py` compares those of quiet
layers with the exact ones.

Further cases are the small networks of `networks.py`.
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
from ..kernel.saved import ROUNDED, decode, eight_bits, encode
from ..neuron.prepare import prepare
from ..options import LIF
from ..surrogate import (
    Parametric,
)
from ..system.events import Listener
from ..system.machine import machine
from .axes import AXES, CONSTANTS, LEARNED, MASKS, SEED, SHAPE, TOLERANCE, C, T
from .networks import NETWORKS, definition
from .networks import run as run_network
from .pairwise import Case, pairwise


@dataclass(frozen=True)
class Place:
    """Where calls run: a backend, a device, and the processor level of a C kernel's build."""

    backend: str
    device: str = "cpu"
    level: str = ""

    @property
    def name(self) -> str:
        """Its name in the certificate."""
        device = "" if self.device == "cpu" else self.device
        return "-".join(part for part in (self.backend, self.level, device) if part)

    def context(self) -> AbstractContextManager[None]:
        """The context in which calls use this build."""
        return library.level(self.level) if self.level else nullcontext()


@dataclass(frozen=True)
class Finding:
    """The result of one case."""

    case: Case
    # relative errors of the gradients, by name
    errors: dict[str, float]
    # whether the mask's bits are right; None without a mask, or if the backend does not report it
    mask: bool | None
    # what is wrong, or ""
    reason: str = ""

    def command(self) -> str:
        """The command that runs only this case."""
        return "backspike certify --only " + ",".join(
            f"{axis}={value}" for axis, value in self.case.items()
        )


@dataclass
class Row:
    """The results of all cases of a place."""

    cases: int = 0
    failed: int = 0
    # cases whose mask bits were compared
    masks: int = 0
    # largest error of a gradient, by dtype; that of quiet networks with 8 bits apart
    errors: dict[str, float] = field(default_factory=dict)
    # why other combinations were not tried, each reason once
    refused: list[str] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Counts the result of a case."""
        self.cases += 1
        self.failed += bool(finding.reason)
        self.masks += finding.mask is not None
        network = NETWORKS.get(finding.case.get("network", ""))
        column = network.column if network else finding.case["dtype"]
        self.errors[column] = max(self.errors.get(column, 0.0), *finding.errors.values(), 0.0)


@dataclass
class Certificate:
    """The result of `run`: the machine, a row per place, and the failed cases."""

    machine: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    failed: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """The number of cases."""
        return sum(row.cases for row in self.rows.values())

    @property
    def passed(self) -> bool:
        """Whether all cases passed."""
        return self.cases > 0 and not self.failed


def run(
    only: Mapping[str, str] | None = None, *, all: bool = False, listen: Listener | None = None
) -> Certificate:
    """Checks every backend of this machine and returns the certificate.

    Args:
        only: axes with a fixed value, such as {"backend": "cpu", "dtype": "bfloat16"}; with
            "network", only that case of `networks.NETWORKS` is run.
        all: every combination of options, which takes hours, instead of every pair of values of
            `AXES` (`pairwise`).
        listen: called with a dict for the start and for each case.

    Raises:
        CertifyError: an option does not exist, or no case is left.
    """
    known = {place.name: place for place in places()}
    only = dict(only or {})
    wanted = _fixed({"backend": known, **AXES, "network": NETWORKS}, only)
    # these cases have no options except the backend
    networks = wanted.pop("network") if only.keys() <= {"backend", "network"} else []
    axes = {axis: values for axis, values in wanted.items() if axis != "network"}
    if "network" in only and not networks:
        raise CertifyError("--only: network=NAME can be combined with backend=NAME alone")
    tell = listen or (lambda event: None)
    certificate = Certificate(machine(torch.get_num_threads()))
    work: list[tuple[Place, Iterable[Case]]] = []
    for name in axes.pop("backend"):
        place, row = known[name], Row()
        certificate.rows[name] = row
        if "network" not in only:
            allowed = _allowed(place, row)
            work.append((place, _every(axes, allowed) if all else pairwise(axes, allowed)))
        dtypes = {network: _name(NETWORKS[network].dtype) for network in networks}
        work.append((place, [{"network": n, "dtype": dtype} for n, dtype in dtypes.items()]))
    count = sum(len(cases) for _, cases in work if isinstance(cases, list))
    tell({"event": "start", "cases": None if all else count})
    for place, cases in work:
        for case in cases:
            one = check_network if "network" in case else check
            finding = one(place, {"backend": place.name, **case})
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
        raise CertifyError(f"--only leaves no combination to check: {'; '.join(reasons)}")
    return certificate


def places() -> list[Place]:
    """Every backend on every device that it supports; the C kernel in each of its builds."""
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


def _fixed(axes: Mapping[str, Mapping[str, Any]], only: Mapping[str, str]) -> dict[str, list[str]]:
    """The values of every axis; a single one where `only` says so."""
    for axis, value in only.items():
        if axis not in axes:
            raise CertifyError(f"--only: no option {axis!r}; choose from: {', '.join(axes)}")
        if value not in axes[axis]:
            raise CertifyError(
                f"--only: {axis} must be one of {', '.join(axes[axis])}; got {value!r}"
            )
    return {axis: [only[axis]] if axis in only else list(values) for axis, values in axes.items()}


def _allowed(place: Place, row: Row) -> Callable[[Case], bool]:
    """Whether the place supports a case; the row collects the reasons why not."""

    def allowed(case: Case) -> bool:
        reason = _refusal(place, case)
        if reason and reason not in row.refused:
            row.refused.append(reason)
        return not reason

    return allowed


def _every(axes: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> Iterator[Case]:
    # dtype and memory, on which the definition does not depend, change fastest
    slow = sorted(axes, key=lambda axis: axis in ("dtype", "memory"))
    for values in itertools.product(*(axes[axis] for axis in slow)):
        case = dict(zip(slow, values))
        if allowed(case):
            yield {axis: case[axis] for axis in axes}


# ---- one case --------------------------------------------------------------------------------


def check(place: Place, case: Case) -> Finding:
    """Compares a case, a value for every axis of `AXES`, with the definition in float64."""
    want = _definition(
        case["memory"] if case["memory"] in ROUNDED else "exact", tuple(case[a] for a in _SHARED)
    )
    limits = _limits(case)
    try:
        with place.context():
            got = _computed(place, case)
    # whatever a broken backend raises is a finding
    except Exception as e:
        return _raised(case, e)
    wrong = [
        f"{name} differ in {n} places"
        for name in ("spikes", "membranes", "states")
        if (n := _unequal(got, want, name))
    ]
    # a backend reports the mask only for contiguous spikes, and NaN has no h
    compared = got["active"] is not None and case["call"] != "non-finite"
    mask = torch.equal(got["active"], want["active"]) if compared else None
    if mask is False:
        wrong.append("mask bits differ")
    errors = {name: _error(got[name], want[name]) for name in limits}
    return Finding(case, errors, mask, "; ".join([*wrong, *_too_large(errors, limits)]))


def check_network(place: Place, case: Case) -> Finding:
    """Compares a case of `networks.NETWORKS` with its definition in float64."""
    # building a network draws random numbers
    with torch.random.fork_rng(devices=[]):
        want = definition(case["network"])
        try:
            with place.context():
                got = run_network(case["network"], place.backend, place.device)
        except Exception as e:
            return _raised(case, e)
    differ = _unequal(got, want, "spikes")
    wrong = [f"spikes differ in {differ} places"] if differ else []
    errors = {name: _error(got[name], want[name]) for name in want if name != "spikes"}
    limits = dict.fromkeys(errors, NETWORKS[case["network"]].limit)
    return Finding(case, errors, None, "; ".join([*wrong, *_too_large(errors, limits)]))


def _raised(case: Case, e: Exception) -> Finding:
    reason = f"raised {type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    return Finding(case, {}, None, reason)


def _too_large(errors: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    return [
        f"the gradient of {name} is off by {error:.2g}, more than {limits[name]:.2g}"
        for name, error in errors.items()
        if not error <= limits[name]
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _limits(case: Case) -> dict[str, float]:
    if case["call"] == "non-finite":
        return {}
    dtype = AXES["dtype"][case["dtype"]]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    others = [*LEARNED[case["learned"]], *(["v0"] if case["call"] == "state" else [])]
    return {"x": TOLERANCE[dtype]} | dict.fromkeys(others, TOLERANCE[wide])


@lru_cache(maxsize=8)
def _inputs(call: str) -> dict[str, Tensor | None]:
    """x, v0 and the incoming gradients of spikes (g), membrane (gu) and state (c), in float64.

    They are multiples of 1/64. Gradients are mostly positive, so that their sums do not cancel.
    """
    draw = torch.Generator().manual_seed(0)

    def grid(shape: Sequence[int]) -> Tensor:
        return torch.randint(-64, 192, tuple(shape), generator=draw).double() / 64

    x, g, gu, v0, c = grid(SHAPE), grid(SHAPE), grid(SHAPE), grid(SHAPE[1:]), grid(SHAPE[1:])
    inputs: dict[str, Tensor | None] = {"x": x, "v0": None, "g": g, "gu": None, "c": None}
    if call == "state":
        inputs |= {"v0": v0 / 4, "c": c}
    elif call == "membrane":
        inputs |= {"gu": gu}
    elif call == "repeats":
        inputs |= {"x": x[:1]}
    elif call == "non-finite":
        for t, bad in enumerate((math.nan, math.inf, -math.inf)):
            x[t, 0, t, t] = bad
            x[t + 1, 1, t, t, t] = bad
    elif call in ("channels-last", "one-sample", "one-row"):
        if call == "one-sample":
            x, g = x[:, :1], g[:, :1]
        elif call == "one-row":
            x, g = x[..., :1, :], g[..., :1, :]
        # as torch's channels_last: the channels are next to each other in memory
        inputs |= {"x": x.movedim(2, -1).contiguous().movedim(-1, 2), "g": g.contiguous()}
    return inputs


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
    """tau, threshold and width: numbers, or trainable tensors in the dtype of the state."""
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
    """Why the neuron does not exist, or why this backend does not support it; "" if it does."""
    if place.backend == "reference" and case["memory"] != "exact":
        return "reference: it saves a graph whatever memory is, so only memory=exact is checked"
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
    """Outputs and gradients of a case, and the call. x: all timesteps, instead of the case's."""
    dtype = AXES["dtype"][case["dtype"]]
    state = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {
        k: None if a is None else a.to(place.device) for k, a in _inputs(case["call"]).items()
    }
    leaf = {
        k: None if (a := inputs[k]) is None else a.to(d).detach().requires_grad_()
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
    incoming = (
        (out.spikes, inputs["g"], dtype),
        (out.state, inputs["c"], state),
        (out.membrane, inputs["gu"], state),
    )
    pairs = [(a, g.to(d)) for a, g, d in incoming if a is not None and g is not None]
    torch.autograd.backward([a for a, _ in pairs], [g for _, g in pairs])
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


# the axes that the definition depends on
_SHARED = tuple(axis for axis in AXES if axis not in ("dtype", "memory"))


@lru_cache(maxsize=64)
def _definition(memory: str, values: tuple[str, ...]) -> dict[str, Any]:
    """The definition's results in float64, at the membranes as decoded from this memory."""
    case = dict(zip(_SHARED, values), dtype="float64", memory="exact")
    exact = _computed(Place("reference"), case, record_membrane=True)
    if memory == "exact":
        return exact
    call = exact["call"]
    theta, width = (
        over_channels(p.detach(), call.x) if isinstance(p, Tensor) else p
        for p in (call.theta, call.width)
    )
    code = eight_bits(call.neuron.base, call.neuron.replace, call.width is not None)
    u = decode(
        memory,
        encode(memory, exact["membranes"], theta, width, code),
        theta,
        width,
        code,
        torch.float64,
    )
    x = _currents(u, exact["spikes"], call)
    decoded = _computed(Place("reference"), case, record_membrane=True, x=x)
    gx = x.grad
    assert gx is not None
    if "tau" in decoded and call.neuron.decay_input:
        # du/dtau contains the original current, not the one that leads to the decoded membrane
        gain = leak(call.tau.detach(), call.x, call.neuron.v_reset, True).gain
        extra = (gx / gain * (x - call.x)).detach() / over_channels(call.tau.detach(), call.x) ** 2
        extra = extra.sum((0, 1, 3, 4)) if call.tau.dim() else extra.sum()
        decoded["tau"] = decoded["tau"] + extra
    decoded["x"] = gx.sum(0, keepdim=True) if call.repeats > 1 else gx
    names = ("x", "v0", "active", *CONSTANTS)
    return exact | {name: decoded[name] for name in names if name in decoded}


def _currents(u: Tensor, spikes: Tensor, call: kernel.Call) -> Tensor:
    """The currents `[T, B, ...]` that lead to these membranes from the call's initial state.

    They are exact for multiples of 1/64.
    """
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
    """The number of differing elements; 0 for results that were not computed.

    Spikes must be NaN in the same places; for membranes and states infinity is as good as NaN.
    """
    if got[name] is None:
        return 0
    if got[name].shape != want[name].shape:
        return want[name].numel()
    a, b = got[name].double(), want[name]
    both = (a.isnan() if name == "spikes" else ~a.isfinite()) & ~b.isfinite()
    return int(((a != b) & ~both).sum())


def _error(got: Tensor | None, want: Tensor | None) -> float:
    """||got - want|| / ||want||; None, autograd's result without a path, counts as zero."""
    if want is None:
        return 0.0 if got is None or not got.any() else math.inf
    got = torch.zeros_like(want) if got is None else got.double()
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return math.inf
    difference, size = (got - want).norm().item(), want.norm().item()
    return difference / size if size else (0.0 if difference == 0 else math.inf)
