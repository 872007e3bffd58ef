"""backspike: train spiking neural networks directly, by back-propagating through spikes.

This file lists the public names. Each is loaded when first used, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .neuron.foreign_names import hint
from .version import __version__ as __version__

_SUBMODULES = {
    "certify": "certify",
    "data": "data",
    "encode": "data.encode",
    "init": "models.init",
    "loss": "loss",
    "models": "models",
    "nir": "exchange.nir",
    "onnx": "exchange.onnx",
    "plot": "report.plot",
    "readout": "readout",
    "recipes": "recipes",
    "study": "study",
}
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
    "options.distribution": ("Gamma", "Normal", "Uniform", "UniformDecay", "ms"),
    "neuron.lif": ("IF", "LIF", "PLIF", "Output", "check_gradients", "lif"),
    "neuron.adaptive": ("AdaptiveLIF",),
    "neuron.clif": ("CLIF",),
    "neuron.cuba": ("CubaLIF",),
    "neuron.integrator": ("Integrator",),
    "neuron.own": ("Neuron",),
    "neuron.biological": ("AdEx", "BRF", "EIF", "Izhikevich", "QIF"),
    "neuron.psn": ("PSN",),
    "neuron.refractory": ("RefractoryCubaLIF", "RefractoryLIF"),
    "neuron.streaming": ("streaming",),
    "neuron.recurrent": ("Recurrent",),
    "neuron.hooks": ("record",),
    "kernel": ("Unsupported", "backends", "dropped"),
    "layers.delay": ("Delay",),
    "layers.dropout": ("Dropout",),
    "layers.over_time": ("OverTime",),
    "layers.norm": ("TDBN", "TEBN"),
    "layers.mpbn": ("MPBN",),
    "layers.fast_convolution": ("set_convolution",),
    "layers.from_torch": ("from_torch",),
    "layers.block": ("block",),
    "layers.explain": ("explain",),
    "layers.sequential": ("Sequential",),
    "methods.long_sequences": ("backward_in_chunks",),
    "methods.ottt": ("ottt",),
    "methods.pda": ("PotentialAdjustment",),
    "methods.sgs": ("scale_gradients",),
    "methods.weight_mask": ("mask_weight_gradients",),
    "recipes.recipe": ("Recipe",),
    "report.summary": ("summary",),
    "streams.plan": ("stream",),
    "system.heap": ("keep_heap", "lean_heap", "release_heap"),
    "train.memory_budget": ("plan_memory",),
    "train.evaluate": ("evaluate",),
    "train.fit": ("fit", "resume"),
    "train.network": ("load",),
    "train.predict": ("Predictor",),
    "doctor.examine": ("examine",),
    "exchange.convert": ("convert",),
    "exchange.convert_state": ("convert_state_dict",),
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
    from . import study as study
    from .data import encode as encode
    from .doctor.examine import examine as examine
    from .exchange import nir as nir
    from .exchange import onnx as onnx
    from .exchange.convert import convert as convert
    from .exchange.convert_state import convert_state_dict as convert_state_dict
    from .kernel import Unsupported as Unsupported
    from .kernel import backends as backends
    from .kernel import dropped as dropped
    from .layers.block import block as block
    from .layers.delay import Delay as Delay
    from .layers.dropout import Dropout as Dropout
    from .layers.explain import explain as explain
    from .layers.fast_convolution import set_convolution as set_convolution
    from .layers.from_torch import from_torch as from_torch
    from .layers.mpbn import MPBN as MPBN
    from .layers.norm import TDBN as TDBN
    from .layers.norm import TEBN as TEBN
    from .layers.over_time import OverTime as OverTime
    from .layers.sequential import Sequential as Sequential
    from .methods.long_sequences import backward_in_chunks as backward_in_chunks
    from .methods.ottt import ottt as ottt
    from .methods.pda import PotentialAdjustment as PotentialAdjustment
    from .methods.sgs import scale_gradients as scale_gradients
    from .methods.weight_mask import mask_weight_gradients as mask_weight_gradients
    from .models import init as init
    from .neuron.adaptive import AdaptiveLIF as AdaptiveLIF
    from .neuron.biological import BRF as BRF
    from .neuron.biological import EIF as EIF
    from .neuron.biological import QIF as QIF
    from .neuron.biological import AdEx as AdEx
    from .neuron.biological import Izhikevich as Izhikevich
    from .neuron.clif import CLIF as CLIF
    from .neuron.cuba import CubaLIF as CubaLIF
    from .neuron.hooks import record as record
    from .neuron.integrator import Integrator as Integrator
    from .neuron.lif import IF as IF
    from .neuron.lif import LIF as LIF
    from .neuron.lif import PLIF as PLIF
    from .neuron.lif import Output as Output
    from .neuron.lif import check_gradients as check_gradients
    from .neuron.lif import lif as lif
    from .neuron.own import Neuron as Neuron
    from .neuron.psn import PSN as PSN
    from .neuron.recurrent import Recurrent as Recurrent
    from .neuron.refractory import RefractoryCubaLIF as RefractoryCubaLIF
    from .neuron.refractory import RefractoryLIF as RefractoryLIF
    from .neuron.streaming import streaming as streaming
    from .options.distribution import Gamma as Gamma
    from .options.distribution import Normal as Normal
    from .options.distribution import Uniform as Uniform
    from .options.distribution import UniformDecay as UniformDecay
    from .options.distribution import ms as ms
    from .recipes.recipe import Recipe as Recipe
    from .report import plot as plot
    from .report.summary import summary as summary
    from .streams.plan import stream as stream
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
    from .system.heap import keep_heap as keep_heap
    from .system.heap import lean_heap as lean_heap
    from .system.heap import release_heap as release_heap
    from .train.evaluate import evaluate as evaluate
    from .train.fit import fit as fit
    from .train.fit import resume as resume
    from .train.memory_budget import plan_memory as plan_memory
    from .train.network import load as load
    from .train.predict import Predictor as Predictor


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        value: Any = import_module(f".{_SUBMODULES[name]}", __name__)
    elif name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint(name)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
