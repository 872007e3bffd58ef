"""`from_torch`: make an image network spiking; code, parameters and their names stay the same.

The network runs with T folded into the batch, `[T B, ...]`, as its code expects; only the neurons
that replace its ReLUs see `[T, B, ...]`. So every layer must treat the samples of a batch
independently, except that BatchNorm takes its statistics over time as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..neuron.lif import LIF
from ..neuron.streaming import Streaming
from .over_time import OverTime

# members of torch.nn.modules.activation that are no activation functions to replace
_ALLOWED = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.MultiheadAttention)
_OF_TIME = (OverTime, Streaming)
_BATCH_SECOND = (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)  # where batch_first is not set


def from_torch(
    model: nn.Module,
    neuron: Callable[[], nn.Module] = LIF,
    replace: Sequence[type[nn.Module]] = (nn.ReLU, nn.ReLU6),
) -> nn.Module:
    """Return a copy of `model` with `neuron()` in place of each module of the types in `replace`.

    The copy maps `[T, B, ...] -> [T, B, ...]`. It has the same weights and accepts the state dict
    of the original, unless the neurons add learned parameters.
    A ReLU module that the model calls twice becomes one neuron that starts from rest at each call;
    `bs.streaming` refuses it. Functions (F.relu, torch.relu) cannot be found and stay as they are;
    `bs.explain` lists what spikes. Norms are not fused with the neurons, as they are in
    `bs.Sequential` and in the networks of `bs.models`.

    Raises ValueError naming a module that cannot be converted, or if nothing would spike.
    """
    model, time = copy.deepcopy(model), Folding()
    for name, m in list(model.named_modules()):
        if reason := _why_not(m, tuple(replace)):
            raise ValueError(f"from_torch: {name or 'the model'} is a {type(m).__name__}, {reason}")
    # a module with several parents or names becomes one neuron
    neurons = {m: Folded(neuron(), time) for m in model.modules() if isinstance(m, tuple(replace))}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in neurons:
                setattr(parent, name, neurons[child])
    if not neurons:
        wanted = ", ".join(kind.__name__ for kind in replace)
        raise ValueError(
            f"from_torch: {type(model).__name__} has no module of type {wanted}, so nothing would "
            "spike; write functions such as F.relu as modules, nn.ReLU()"
        )
    time.attach(model)
    return model


def _why_not(m: nn.Module, replaced: tuple[type, ...]) -> str:
    if isinstance(m, replaced):
        return ""
    if isinstance(m, _OF_TIME):
        return "which has a time dimension already; only image networks can be converted"
    if isinstance(m, _BATCH_SECOND) and not getattr(m, "batch_first", True):
        return "whose batch is dimension 1; set batch_first=True"
    if type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, _ALLOWED):
        kind = type(m).__name__
        return f"not a ReLU; write nn.ReLU(), or add the type: replace=(nn.ReLU, nn.{kind})"
    return ""


class Folding:
    """The number of timesteps in the batch while a converted model runs."""

    def __init__(self) -> None:
        self.T: int | None = None
        self.ran: set[Folded] = set()  # in this forward pass

    def attach(self, model: nn.Module) -> None:
        """Make `model`, written for single images, take and return `[T, B, ...]`."""
        model.register_forward_pre_hook(self.fold)
        model.register_forward_hook(self.unfold, always_call=True)

    def fold(self, model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        if not isinstance(x, Tensor) or x.dim() < 2 or others:
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"a converted model takes one input [T, B, ...], got {got} and {len(others)} more"
            )
        self.T = len(x)
        self.ran.clear()
        return (x.flatten(0, 1),)

    def unfold(self, model: nn.Module, args: tuple[Any, ...], y: Any) -> Any:
        T, self.T = self.T, None
        if y is None:  # the model raised
            return None
        if not isinstance(y, Tensor):
            raise TypeError(f"a converted model must return one tensor, got {type(y).__name__}")
        return _unfolded(y, T)


def _unfolded(x: Tensor, T: int | None) -> Tensor:
    if T is None:
        raise RuntimeError("this is part of a converted model; call the whole model")
    if len(x) % T:
        raise ValueError(
            f"a batch of shape {list(x.shape)} does not contain T={T} timesteps: "
            "an earlier layer moved the dimensions"
        )
    return x.unflatten(0, (T, -1))


class Folded(nn.Module):
    """A neuron among layers that see time folded into the batch."""

    def __init__(self, neuron: nn.Module, time: Folding) -> None:
        super().__init__()
        self.neuron = neuron
        self._time = time

    def forward(self, x: Tensor) -> Tensor:
        x = _unfolded(x, self._time.T)
        if self in self._time.ran and getattr(self.neuron, "streams", False):
            raise RuntimeError(
                "bs.streaming: a ReLU or neuron that the model calls twice would need two states; "
                "give each call its own"
            )
        self._time.ran.add(self)
        y: Tensor = self.neuron(x)
        return y.flatten(0, 1)
