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

from ..kernel.coefficients import over_channels
from ..neuron.lif import LIF
from ..neuron.streaming import Streaming
from . import calibrate as rates
from .over_time import OverTime

# members of torch.nn.modules.activation that are no activation functions to replace
_ALLOWED = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.MultiheadAttention)
_OF_TIME = (OverTime, Streaming)
_BATCH_SECOND = (nn.RNNBase, nn.MultiheadAttention, nn.Transformer)  # where batch_first is not set


def from_torch(
    model: nn.Module,
    neuron: Callable[[], nn.Module] = LIF,
    replace: Sequence[type[nn.Module]] = (nn.ReLU, nn.ReLU6),
    *,
    calibrate: Any = None,
    percentile: float = 99.9,
    timesteps: Sequence[int] = (1, 4, 8, 16, 32, 64),
) -> nn.Module:
    """Return a copy of `model` with `neuron()` in place of each module of the types in `replace`.

    The copy maps `[T, B, ...] -> [T, B, ...]`. It has the same weights and accepts the state dict
    of the original, unless the neurons add learned parameters.
    A ReLU module that the model calls twice becomes one neuron that starts from rest at each call;
    `bs.streaming` refuses it. Functions (F.relu, torch.relu) cannot be found and stay as they are;
    `bs.explain` lists what spikes. Norms are not fused with the neurons, as they are in
    `bs.Sequential` and in the networks of `bs.models`.

    calibrate: for a trained network, inputs `[N, ...]`, or batches of them as a DataLoader gives.
    Then `neuron` is an integrate-and-fire neuron with soft reset whose spikes are as high as its
    threshold, the given percentile of its channel's activations on these inputs. The mean of the
    output over T timesteps of the same input approaches the original's; `result.calibration` has
    the thresholds and the loss of every layer at `timesteps`: print it. The state dict has a
    buffer `amplitude` for each neuron besides the original's entries. The result can be trained.
    Percentiles: Rueckauer et al. 2017; half a threshold at the start: Bu et al. 2022.

    Raises ValueError naming a module that cannot be converted, or if nothing would spike.
    """
    if calibrate is not None and neuron is not LIF:
        raise ValueError("from_torch: give neuron= or calibrate=, which uses a neuron of its own")
    kinds = tuple(replace)
    for name, m in list(model.named_modules()):
        if reason := _why_not(m, kinds, calibrate is not None):
            raise ValueError(f"from_torch: {name or 'the model'} is a {type(m).__name__}, {reason}")
    relus = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not relus:
        wanted = ", ".join(kind.__name__ for kind in replace)
        raise ValueError(
            f"from_torch: {type(model).__name__} has no module of type {wanted}, so nothing would "
            "spike; write functions such as F.relu as modules, nn.ReLU()"
        )
    if calibrate is None:
        return _spiking(model, {m: neuron() for m in relus.values()})
    batches = rates.inputs(calibrate)
    ann = copy.deepcopy(model).eval()
    watched = {name: ann.get_submodule(name) for name in relus}
    found = rates.thresholds(ann, watched, batches, percentile)
    heights = {m: found[name] for name, m in relus.items()}
    snn = _spiking(model, {m: rates.neuron() for m in heights}, heights)
    twin = copy.deepcopy(snn).eval()
    pairs = {name: (m, twin.get_submodule(name)) for name, m in watched.items()}
    loss = rates.measure(ann, twin, pairs, batches[0][: rates.SAMPLES], timesteps)
    snn.calibration = rates.Calibration(found, loss)  # type: ignore[assignment]
    return snn


def _spiking(
    model: nn.Module,
    neurons: dict[nn.Module, nn.Module],
    heights: dict[nn.Module, Tensor] | None = None,
) -> nn.Module:
    """A copy of the model on `[T, B, ...]`, with these neurons in place of its modules."""
    time, heights = Folding(), heights or {}
    # a module with several parents or names becomes one neuron
    memo: dict[int, Any] = {
        id(m): Folded(neuron, time, heights.get(m)) for m, neuron in neurons.items()
    }
    spiking = copy.deepcopy(model, memo)
    time.attach(spiking)
    return spiking


def _why_not(m: nn.Module, replaced: tuple[type, ...], for_rates: bool) -> str:
    if isinstance(m, replaced):
        return ""
    if isinstance(m, _OF_TIME):
        return "which has a time dimension already; only image networks can be converted"
    if isinstance(m, _BATCH_SECOND) and not getattr(m, "batch_first", True):
        return "whose batch is dimension 1; set batch_first=True"
    if type(m).__module__ == "torch.nn.modules.activation" and not isinstance(m, _ALLOWED):
        kind = type(m).__name__
        return f"not a ReLU; write nn.ReLU(), or add the type: replace=(nn.ReLU, nn.{kind})"
    return rates.why_no_rate(m) if for_rates else ""


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
        self.T = x.shape[0]  # len(x) would fix it in an exported graph
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
    if x.shape[0] % T:
        raise ValueError(
            f"a batch of shape {list(x.shape)} does not contain T={T} timesteps: "
            "an earlier layer moved the dimensions"
        )
    return x.unflatten(0, (T, -1))


class Folded(nn.Module):
    """A neuron among layers that see time folded into the batch.

    amplitude: the height of its spikes and, in units of its input, of its threshold; `[C]`.
    """

    amplitude: Tensor | None

    def __init__(self, neuron: nn.Module, time: Folding, amplitude: Tensor | None = None) -> None:
        super().__init__()
        self.neuron = neuron
        self._time = time
        self.register_buffer("amplitude", amplitude)

    def forward(self, x: Tensor) -> Tensor:
        x = _unfolded(x, self._time.T)
        if self in self._time.ran and getattr(self.neuron, "streams", False):
            raise RuntimeError(
                "bs.streaming: a ReLU or neuron that the model calls twice would need two states; "
                "give each call its own"
            )
        self._time.ran.add(self)
        a = over_channels(self.amplitude, x)
        y: Tensor = self.neuron(x) if a is None else a * self.neuron(x / a)
        return y.flatten(0, 1)
