"""`from_torch`: a network written for images turned spiking, its code, its parameters and their names as they are.

The network runs with T folded into the batch, `[T B, ...]`, as its code expects; the neurons that took the place of its ReLUs
alone see `[T, B, ...]`. So every layer must treat the samples of a batch alike, and BatchNorm takes its statistics over time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..neuron.lif import LIF
from ..neuron.streaming import Streaming
from .over_time import OverTime

_KEPT = (
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.MultiheadAttention,
)  # of torch.nn.modules.activation
_OF_TIME = (OverTime, Streaming)
_BATCH_SECOND = (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)  # where batch_first is not set


def from_torch(
    model: nn.Module,
    neuron: Callable[[], nn.Module] = LIF,
    replace: Sequence[type[nn.Module]] = (nn.ReLU, nn.ReLU6),
) -> nn.Module:
    """A copy of `model` with `neuron()` in the place of each module of the types `replace`: `[T, B, ...] -> [T, B, ...]`.

    Weights come along, and as neurons without learned constants add none, `load_state_dict` takes those of the original. A
    ReLU module that the model calls twice becomes one neuron that starts from rest at both calls; `bs.streaming` refuses it.
    A function (F.relu, torch.relu) cannot be seen and stays what it is: `bs.explain` lists what spikes. The neurons run in
    their kernels, one layer after the other; `bs.Sequential` and the networks of `bs.models` run norms with them.
    Raises ValueError naming the module that cannot be converted.
    """
    model, time = copy.deepcopy(model), _Time()
    for name, m in list(model.named_modules()):
        if reason := _why_not(m, tuple(replace)):
            raise ValueError(f"from_torch: {name or 'the model'} is a {type(m).__name__}, {reason}")
    # one that has several parents, or names, stays one
    neurons = {m: _Folded(neuron(), time) for m in model.modules() if isinstance(m, tuple(replace))}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in neurons:
                setattr(parent, name, neurons[child])
    if not neurons:
        wanted = ", ".join(kind.__name__ for kind in replace)
        raise ValueError(
            f"from_torch: {type(model).__name__} holds no module of the types {wanted}, so nothing would spike; "
            "a function such as F.relu cannot be seen: write it as a module, nn.ReLU()"
        )
    model.register_forward_pre_hook(time.fold)
    model.register_forward_hook(time.unfold, always_call=True)
    return model


def _why_not(m: nn.Module, replaced: tuple[type, ...]) -> str:
    if isinstance(m, replaced):
        return ""
    if isinstance(m, _OF_TIME):
        return "which sees time already; only networks of images are converted"
    if isinstance(m, _BATCH_SECOND) and not getattr(m, "batch_first", True):
        return "whose batch comes second; set batch_first=True"
    if type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, _KEPT):
        return f"which is no ReLU; write nn.ReLU(), or name it: replace=(nn.ReLU, nn.{type(m).__name__})"
    return ""


class _Time:
    """How many timesteps the batch of a converted model holds while it runs."""

    def __init__(self) -> None:
        self.T: int | None = None
        self.ran: set[_Folded] = set()  # in this forward pass

    def fold(self, model: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        if not isinstance(x, Tensor) or x.dim() < 2 or others:
            got = f"shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(
                f"a model of bs.from_torch takes one input [T, B, ...], got {got} and {len(others)} more"
            )
        self.T = len(x)
        self.ran.clear()
        return (x.flatten(0, 1),)

    def unfold(self, model: nn.Module, args: tuple[Any, ...], y: Any) -> Any:
        T, self.T = self.T, None
        if y is None:  # the model raised
            return None
        if not isinstance(y, Tensor):
            raise TypeError(
                f"a model of bs.from_torch must return one tensor, got {type(y).__name__}"
            )
        return _unfolded(y, T)


def _unfolded(x: Tensor, T: int | None) -> Tensor:
    if T is None:
        raise RuntimeError(
            "this is a part of a model that bs.from_torch made; call the whole model"
        )
    if len(x) % T:
        raise ValueError(
            f"T={T} timesteps are not in the batch of {list(x.shape)}: a layer before has moved the dimensions"
        )
    return x.unflatten(0, (T, -1))


class _Folded(nn.Module):
    """A neuron among layers that see T as batch."""

    def __init__(self, neuron: nn.Module, time: _Time) -> None:
        super().__init__()
        self.neuron, self._time = neuron, time

    def forward(self, x: Tensor) -> Tensor:
        x = _unfolded(x, self._time.T)
        if self in self._time.ran and getattr(self.neuron, "streams", False):
            raise RuntimeError(
                "bs.streaming: a ReLU that the model calls twice has two states; give each call its own nn.ReLU()"
            )
        self._time.ran.add(self)
        y: Tensor = self.neuron(x)
        return y.flatten(0, 1)
