"""The stateless layers and containers of snnTorch, SpikingJelly and Norse as torch's and ours."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ..errors import ExchangeError
from ..layers.norm import TEBN
from .foreign_neuron import is_neuron, library

CONTAINERS = ("SequentialState", "SeqToANNContainer", "MultiStepContainer", "StepModeContainer")
LIFTED = ("Lift",)  # Norse: a module applied to each timestep
# SpikingJelly: the same mask at all timesteps, which torch's layers do not have
DROPOUT = {
    "Dropout": nn.Dropout,
    "Dropout2d": nn.Dropout2d,
    "MultiStepDropout": nn.Dropout,
    "MultiStepDropout2d": nn.Dropout2d,
}
THRESHOLD_NORM = "ThresholdDependentBatchNorm"
TEMPORAL_NORM = "TemporalEffectiveBatchNorm"


def is_container(m: nn.Module) -> bool:
    return type(m) is nn.Sequential or (bool(library(m)) and type(m).__name__ in CONTAINERS)


def is_lifted(m: nn.Module) -> bool:
    return library(m) == "norse" and type(m).__name__ in LIFTED


def is_layer(m: nn.Module) -> bool:
    """Whether m is a layer of torch, or a library's class for one."""
    name = type(m).__name__
    if type(m).__module__.startswith("torch.nn."):
        return not any(is_neuron(child) for child in m.modules()) and not is_container(m)
    return bool(library(m)) and (
        name in DROPOUT
        or name.removeprefix("MultiStep").startswith((THRESHOLD_NORM, TEMPORAL_NORM))
        or _torch_class(m) is not None
    )


def _torch_class(m: nn.Module) -> type | None:
    """torch's class of the same name that the class of m is derived from."""
    name = type(m).__name__
    return next(
        (b for b in type(m).__mro__[1:] if b.__name__ == name and b.__module__[:9] == "torch.nn."),
        None,
    )


def folds_time(m: nn.Module) -> bool:
    """Whether a layer folds the T of `[T, B, ...]` into the batch by itself."""
    many = getattr(m, "step_mode", "s") == "m" or type(m).__name__.startswith("MultiStep")
    return bool(library(m)) and many


def folds_container(m: nn.Module) -> bool:
    """Whether m is a row of stateless layers with T folded into the batch."""
    name = type(m).__name__
    return is_container(m) and (
        name == "SeqToANNContainer" or (name == "StepModeContainer" and not m.stateful)
    )


def loops_over_time(m: nn.Module) -> bool:
    """Whether m is a row of layers on single timesteps that runs them over sequences."""
    name = type(m).__name__
    return name == "MultiStepContainer" or (name == "StepModeContainer" and folds_time(m))


def on_sequences(m: nn.Module) -> bool:
    """Whether m, no neuron, is a library's layer or container that takes `[T, B, ...]`."""
    if is_container(m):
        return loops_over_time(m) or type(m).__name__ == "SeqToANNContainer" or folds_time(m)
    return is_lifted(m) or (is_layer(m) and folds_time(m))


def keeps_mask(m: nn.Module) -> bool:
    """Whether m is a dropout with the same mask at all timesteps."""
    return library(m) == "spikingjelly" and type(m).__name__ in DROPOUT


def keeps_state(m: Any) -> bool:
    """Whether m, no neuron or layer known here, may carry something from timestep to timestep."""
    if is_neuron(m) or is_layer(m) or is_container(m) or is_lifted(m) or not library(m):
        return False
    inside = any(is_neuron(child) for child in m.modules())
    return library(m) != "spikingjelly" or hasattr(m, "_memories") or not inside


def copy_layer(m: Any) -> nn.Module:
    """torch's layer of the same weights; it sees one timestep, or T folded into the batch."""
    name = type(m).__name__.removeprefix("MultiStep")
    if not library(m):
        return copy.deepcopy(m)
    if name in DROPOUT:
        return DROPOUT[name](m.p)
    if name.startswith(TEMPORAL_NORM):
        norm = TEBN(m.num_features, len(m.scale), eps=m.eps, momentum=m.momentum)
        norm.load_state_dict(m.state_dict())
        return norm.to(m.weight.dtype)
    kind = (
        getattr(nn, f"BatchNorm{name[-2:]}") if name.startswith(THRESHOLD_NORM) else _torch_class(m)
    )
    if kind is None:
        raise ExchangeError("it has no equal here")
    layer: nn.Module = copy.deepcopy(m)
    layer.__class__ = kind
    return layer
