"""Networks to and from other tools: `bs.nir` for NIR files, `bs.onnx` for ONNX files."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:  # late, as the worker that reads files needs no torch
    if name not in ("nir", "onnx"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)
