"""The one seam between the neuron and what computes it: a `Rule`, a `Call`, and a backend that runs the whole sequence.

A backend is a module with `refuses(call) -> reason or None` and `run(call) -> Result`. `dispatch` picks one; `auto` takes the
first that does not refuse and logs once why that is not the fastest.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ..surrogate import Surrogate
from . import clif, cpu, eager, reference
from .kept import MEMORIES
from .mask import draw_seed, dropped
from .moments import Moments
from .result import Result

__all__ = [
    "MEMORIES",
    "Call",
    "Moments",
    "Result",
    "Rule",
    "Unsupported",
    "backends",
    "choose",
    "dispatch",
    "draw_seed",
    "dropped",
]

_MISSING = {"cpu": cpu.missing() or ""}


def _found() -> dict[str, ModuleType]:
    """In the order of preference of backend="auto"; which of them takes an input is for them to say."""
    found: dict[str, ModuleType] = {"cpu": cpu} if cpu.available() else {}
    if (on_gpu := torch.cuda.is_available()) or os.environ.get("TRITON_INTERPRET") == "1":
        try:
            triton = import_module(".triton", __name__)
        except Exception as error:  # not installed, or broken
            _MISSING["triton"] = f"it does not import ({error})"
        else:
            found = {"triton": triton, **found} if on_gpu else {**found, "triton": triton}
    return {**found, "eager": eager, "reference": reference}


_BACKENDS = _found()
_FASTEST = "the fastest here"
_announced: set[str] = set()


class Unsupported(RuntimeError):
    """A backend cannot do what was asked; the message says what and which backend can."""


@dataclass(frozen=True)
class Rule:
    """What does not change from step to step and is no tensor: the form of the equations of `bs.lif`."""

    v_reset: float | None
    decay_input: bool
    surrogate: Surrogate  # the base: neither Masked nor Parametric
    replace: Surrogate | None
    rescale: bool
    reset_gradient: float
    temporal_gradient: bool
    record_membrane: bool
    record_moments: bool = False
    record_active: bool = False
    record_bits: bool = False  # spikes as bits too, by backends that can
    record_state: bool = True  # False: nobody asks for the state, which may come out empty
    memory: str = "exact"  # see kept.py; "checkpoint" has become "recompute"
    complementary: bool = False  # the neuron of clif.py, with a soft reset


@dataclass
class Call:
    """One call of `bs.lif`, checked and normalised. Learned quantities are 0-dim or `[C]` tensors."""

    x: Tensor  # [T, B, ...], or [1, B, ...] that stands for `repeats` equal timesteps
    v0: Tensor | None  # [B, ...] in the state's dtype; of a complementary neuron [2, B, ...]
    tau: float | Tensor
    theta: float | Tensor
    width: Tensor | None
    seed: Tensor | None  # None: no mask
    p: Tensor | None
    rule: Rule
    repeats: int = 1


def backends() -> tuple[str, ...]:
    """Names of the backends that work on this machine, the preferred one first."""
    return tuple(_BACKENDS)


def choose(backend: str, call: Call) -> tuple[str, str]:
    """The backend that runs this call and why. Raises `Unsupported` when the named one cannot."""
    if backend != "auto":
        if backend not in _BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; here there are: auto, {', '.join(_BACKENDS)}")
        if reason := _BACKENDS[backend].refuses(call):
            raise Unsupported(f"backend {backend!r}: {reason}; use backend='auto'")
        return backend, "asked for"
    fastest = "triton" if call.x.device.type == "cuda" else "cpu"
    reasons: list[str] = []
    for name in (fastest, "eager", "reference"):
        reason = _BACKENDS[name].refuses(call) if name in _BACKENDS else _MISSING[name]
        if reason is None:
            return name, "; ".join(reasons) or _FASTEST
        reasons.append(f"{name}: {reason}")
    raise Unsupported("no backend can do this: " + "; ".join(reasons))


def dispatch(backend: str, call: Call) -> Result:
    name, why = choose(backend, call)
    if backend == "auto" and why != _FASTEST and why not in _announced and not torch.compiler.is_compiling():
        _announced.add(why)
        # logged and not warned: it is news, no fault, and must not break a program that turns warnings into errors
        logging.getLogger("backspike").warning("backspike: backend %r computes, a slower one (%s)", name, why)
    if call.rule.complementary and name != "reference":
        return clif.run(call, compiled=name == "cpu")
    result: Result = _BACKENDS[name].run(call)
    return result
