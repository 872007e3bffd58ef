"""Select the backend that runs a call: the requested one, or the first that does not refuse."""

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

_UNAVAILABLE = {"cpu": library.missing() or ""}


def _find_backends() -> dict[str, ModuleType]:
    """The backends that can be loaded here, the preferred one first.

    Each of them decides in `refuses` which inputs it accepts.
    """
    found: dict[str, ModuleType] = {"cpu": cpu} if library.available() else {}
    if (on_gpu := torch.cuda.is_available()) or os.environ.get("TRITON_INTERPRET") == "1":
        try:
            triton = import_module(".triton", __package__)
        except Exception as error:  # not installed, or broken
            _UNAVAILABLE["triton"] = f"importing it fails ({error})"
        else:
            found = {"triton": triton, **found} if on_gpu else {**found, "triton": triton}
    return {**found, "eager": eager, "reference": reference}


_BACKENDS = _find_backends()
_FASTEST = "the fastest on this machine"
_announced: set[str] = set()


def backends() -> tuple[str, ...]:
    """The names of the backends that work on this machine, the preferred one first."""
    return tuple(_BACKENDS)


def fastest(device: torch.device) -> str:
    """The backend that "auto" tries first on this device."""
    return "triton" if device.type == "cuda" else "cpu"


def unavailable(name: str) -> str | None:
    """Why this backend cannot be loaded here; None if it can."""
    return None if name in _BACKENDS else _UNAVAILABLE.get(name, "there is no GPU")


def choose(backend: str, call: Call) -> tuple[str, str]:
    """The backend that runs this call, and the reason for choosing it.

    Raises ValueError if there is no backend of this name, and `Unsupported` if it cannot run the
    call.
    """
    if backend != "auto":
        if backend not in _BACKENDS:
            raise ValueError(
                f"unknown backend {backend!r}; choose one of auto, {', '.join(_BACKENDS)}"
            )
        if reason := _BACKENDS[backend].refuses(call):
            raise Unsupported(f"backend {backend!r}: {reason}; use backend='auto'")
        return backend, "requested"
    reasons: list[str] = []
    for name in (fastest(call.x.device), "eager", "reference"):
        reason = unavailable(name) or _BACKENDS[name].refuses(call)
        if reason is None:
            return name, "; ".join(reasons) or _FASTEST
        reasons.append(f"{name}: {reason}")
    raise Unsupported("no backend can run this call: " + "; ".join(reasons))


def dispatch(backend: str, call: Call) -> Result:
    """Run the call on the backend that `choose` selects."""
    name, reason = choose(backend, call)
    if (
        backend == "auto"
        and reason != _FASTEST
        and reason not in _announced
        and not torch.compiler.is_compiling()
    ):
        _announced.add(reason)
        # logged instead of warned: it must not break a program that turns warnings into errors
        logging.getLogger("backspike").warning(
            "backspike: using the slower %r backend (%s)", name, reason
        )
    try:
        result: Result = _BACKENDS[name].run(call)
    except Unsupported:
        # a kernel that does not compile on first use; from now on its backend refuses
        if backend != "auto" or choose(backend, call)[0] == name:
            raise
        return dispatch(backend, call)
    return result
