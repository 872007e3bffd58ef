"""backspike: spiking neural networks trained directly, by back-propagating through spikes.

The public names. They are loaded when first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_SUBMODULES = ("certify", "data", "loss", "models", "readout", "recipes")
_NAMES = {
    "surrogate": (
        "ATan",
        "Dspike",
        "Erf",
        "Masked",
        "Parametric",
        "PiecewiseExponential",
        "Rectangle",
        "Sigmoid",
        "SuperSpike",
        "Surrogate",
        "Triangle",
    ),
    "neuron": ("CLIF", "IF", "LIF", "PLIF", "CubaLIF", "Integrator", "Output", "check_gradients", "lif", "streaming"),
    "recurrent": ("Recurrent",),
    "kernel": ("Unsupported", "backends", "dropped"),
    "layer": ("OverTime",),
    "norm": ("TDBN", "TEBN"),
    "mpbn": ("MPBN",),
    "conversion": ("from_torch",),
    "fusion": ("block",),
    "explanation": ("explain",),
    "sequential": ("Sequential",),
    "hooks": ("record",),
    "potential": ("PotentialAdjustment",),
    "scaling": ("mask_weight_gradients", "scale_gradients"),
    "recipe": ("Recipe",),
    "heap": ("keep_heap", "lean_heap", "release_heap"),
    "memory": ("plan_memory",),
    "train": ("evaluate", "fit", "load", "resume"),
    "doctor": ("examine",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_HOME, *_SUBMODULES])

if TYPE_CHECKING:
    from . import certify as certify
    from . import data as data
    from . import loss as loss
    from . import models as models
    from . import readout as readout
    from . import recipes as recipes
    from .conversion import from_torch as from_torch
    from .doctor import examine as examine
    from .explanation import explain as explain
    from .fusion import block as block
    from .heap import keep_heap as keep_heap
    from .heap import lean_heap as lean_heap
    from .heap import release_heap as release_heap
    from .hooks import record as record
    from .kernel import Unsupported as Unsupported
    from .kernel import backends as backends
    from .kernel import dropped as dropped
    from .layer import OverTime as OverTime
    from .memory import plan_memory as plan_memory
    from .mpbn import MPBN as MPBN
    from .neuron import CLIF as CLIF
    from .neuron import IF as IF
    from .neuron import LIF as LIF
    from .neuron import PLIF as PLIF
    from .neuron import CubaLIF as CubaLIF
    from .neuron import Integrator as Integrator
    from .neuron import Output as Output
    from .neuron import check_gradients as check_gradients
    from .neuron import lif as lif
    from .neuron import streaming as streaming
    from .norm import TDBN as TDBN
    from .norm import TEBN as TEBN
    from .potential import PotentialAdjustment as PotentialAdjustment
    from .recipe import Recipe as Recipe
    from .recurrent import Recurrent as Recurrent
    from .scaling import mask_weight_gradients as mask_weight_gradients
    from .scaling import scale_gradients as scale_gradients
    from .sequential import Sequential as Sequential
    from .surrogate import ATan as ATan
    from .surrogate import Dspike as Dspike
    from .surrogate import Erf as Erf
    from .surrogate import Masked as Masked
    from .surrogate import Parametric as Parametric
    from .surrogate import PiecewiseExponential as PiecewiseExponential
    from .surrogate import Rectangle as Rectangle
    from .surrogate import Sigmoid as Sigmoid
    from .surrogate import SuperSpike as SuperSpike
    from .surrogate import Surrogate as Surrogate
    from .surrogate import Triangle as Triangle
    from .train import evaluate as evaluate
    from .train import fit as fit
    from .train import load as load
    from .train import resume as resume


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        value: Any = import_module(f".{name}", __name__)
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
