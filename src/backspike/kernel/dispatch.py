"""Which backend runs a call: the one that was asked for, or the first that does not refuse."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from types import ModuleType

import torch

from ..errors import Unsupported
from . import cpu, eager, reference
from .call import Call, Result
from .cpu import library

_MISSING = {"cpu": library.missing() or ""}


def _found() -> dict[str, ModuleType]:
    """In the order of preference of backend="auto"; which of them takes an input is for them to say."""
    found: dict[str, ModuleType] = {"cpu": cpu} if library.available() else {}
    if (on_gpu := torch.cuda.is_available()) or os.environ.get("TRITON_INTERPRET") == "1":
        try:
            triton = import_module(".triton", __package__)
        except Exception as error:  # not installed, or broken
            _MISSING["triton"] = f"it does not import ({error})"
        else:
            found = {"triton": triton, **found} if on_gpu else {**found, "triton": triton}
    return {**found, "eager": eager, "reference": reference}


_BACKENDS = _found()
_FASTEST = "the fastest here"
_announced: set[str] = set()


def backends() -> tuple[str, ...]:
    """Names of the backends that work on this machine, the preferred one first."""
    return tuple(_BACKENDS)


def choose(backend: str, call: Call) -> tuple[str, str]:
    """The backend that runs this call and why. Raises `Unsupported` when the named one cannot."""
    if backend != "auto":
        if backend not in _BACKENDS:
            raise ValueError(
                f"unknown backend {backend!r}; here there are: auto, {', '.join(_BACKENDS)}"
            )
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
    if (
        backend == "auto"
        and why != _FASTEST
        and why not in _announced
        and not torch.compiler.is_compiling()
    ):
        _announced.add(why)
        # logged and not warned: it is news, no fault, and must not break a program that turns warnings into errors
        logging.getLogger("backspike").warning(
            "backspike: backend %r computes, a slower one (%s)", name, why
        )
    result: Result = _BACKENDS[name].run(call)
    return result
