"""Thresholds for a network of ReLUs whose ReLUs become spiking neurons, and the loss this costs.

An integrate-and-fire neuron with soft reset, driven by a constant current a and started at half its
threshold lam, fires about T a / lam times in T timesteps, at most T times. Spikes of the height lam
so stand for min(a, lam), rounded to a multiple of lam / T. lam is a percentile of the activations
(Rueckauer et al. 2017, doi:10.3389/fnins.2017.00682, section 2.2.1), here of each channel; the
start at lam / 2 makes the rounding symmetric (Bu et al. 2022, arXiv 2202.01440).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron.hooks import on_call
from ..neuron.lif import LIF
from ..neuron.shifted import Shifted
from ..neuron.streaming import streaming
from ..surrogate import ATan
from ..system.table import Table, left, right
from .dropout import Dropout

SAMPLES = 64  # of the calibration data, on which the loss is measured
# layers that are linear in their input, or do nothing in evaluation
_LINEAR = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._AvgPoolNd,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.Linear,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.Upsample,
    nn.PixelShuffle,
    nn.ZeroPad2d,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
)


@dataclass(frozen=True)
class Calibration:
    """The result of `bs.from_torch(..., calibrate=...)`; `print` it for a table.

    thresholds: of each channel of each spiking layer, in units of its activations.
    loss: for each T, and for each layer and "output", the distance of the mean over T timesteps
    from what the network of ReLUs computes, relative to it: norm(mean - exact) / norm(exact).
    """

    thresholds: dict[str, Tensor]
    loss: dict[int, dict[str, float]]

    def __str__(self) -> str:
        names = [*self.thresholds, "output"]
        heads = right(*(f"T={T}" for T in self.loss), format=lambda value: f"{value:.1%}")
        ranges = {name: f"{v.min():.3g} to {v.max():.3g}" for name, v in self.thresholds.items()}
        rows = [
            (name, ranges.get(name, ""), *(loss[name] for loss in self.loss.values()))
            for name in names
        ]
        return Table([*left("layer", "thresholds"), *heads], rows).to_text()


def why_no_rate(m: nn.Module) -> str:
    """Why a layer has no counterpart for spike rates; "" if it has one, or is no layer of torch."""
    if isinstance(m, _LINEAR) or not type(m).__module__.startswith("torch.nn."):
        return ""
    if "MaxPool" in type(m).__name__:
        return "and the maximum of spikes is not the maximum of rates; train with average pools"
    return "which has no counterpart for spike rates; train with BatchNorm, ReLU and average pools"


def neuron() -> LIF:
    """The neuron of a calibrated layer, for currents in units of its threshold."""
    return Shifted(
        math.inf,
        v_threshold=1.0,
        v_reset=None,
        decay_input=False,
        surrogate=ATan(alpha=2.0),
        reset_gradient=1.0,
        temporal_gradient=True,
        backend="auto",
        memory="exact",
        start=0.5,
    )


def inputs(data: Any) -> list[Tensor]:
    """The batches of the calibration data: of a tensor, a loader, or pairs with labels."""
    batches = data.split(256) if isinstance(data, Tensor) else data
    batches = [batch[0] if isinstance(batch, tuple | list) else batch for batch in batches]
    if not all(isinstance(x, Tensor) for x in batches):
        raise TypeError(
            "from_torch: calibrate must be inputs [N, ...], or an iterable of batches such as a "
            "DataLoader"
        )
    if not sum(map(len, batches)):
        raise ValueError("from_torch: calibrate contains no inputs")
    return [x for x in batches if len(x)]


def thresholds(
    model: nn.Module,
    activations: dict[str, nn.Module],
    batches: Sequence[Tensor],
    percentile: float,
) -> dict[str, Tensor]:
    """The percentile of each channel that each of these modules gives, over all batches, `[C]`.

    A channel that is never active gets the largest threshold of its layer.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"from_torch: percentile must lie in (0, 100], got {percentile}")
    samples, largest = sum(map(len, batches)), dict[str, Tensor]()
    for x in batches:
        for name, ys in _outputs(model, activations, x).items():
            y = torch.cat([y.transpose(0, 1).flatten(1) for y in ys], 1)  # [C, values]
            count = math.ceil(y.shape[1] / len(x) * samples * (1 - percentile / 100)) + 1
            seen = torch.cat((largest.get(name, y[:, :0]), y), 1)
            largest[name] = seen.topk(min(count, seen.shape[1]), 1).values
    found = {}
    for name in activations:
        channels = largest[name][:, -1] if name in largest else torch.zeros(1)
        if not float(channels.max()) > 0:
            raise ValueError(
                f"from_torch: {name} is never active on the calibration data, so it has no "
                "threshold; give other data, or a higher percentile"
            )
        found[name] = torch.where(channels > 0, channels, channels.max())
    return found


def _outputs(model: nn.Module, watched: dict[str, nn.Module], x: Tensor) -> dict[str, list[Tensor]]:
    """What each of the modules gives for x, one entry for each call, and the "output"."""
    found: dict[str, list[Tensor]] = {}

    def see(name: str, _inputs: tuple[Any, ...], output: Tensor) -> None:
        found.setdefault(name, []).append(output.detach().clone())

    with on_call(watched, see), torch.no_grad():
        found.setdefault("output", []).append(model(x))
    return found


def measure(
    ann: nn.Module,
    snn: nn.Module,
    layers: dict[str, tuple[nn.Module, nn.Module]],
    x: Tensor,
    timesteps: Iterable[int],
) -> dict[int, dict[str, float]]:
    """The loss of each layer and of the output at each T; layers: the ReLU and its neuron."""
    wanted = sorted(set(timesteps))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"from_torch: timesteps must be numbers from 1 on, got {wanted}")
    exact = _outputs(ann, {name: relu for name, (relu, _) in layers.items()}, x)
    neurons, total = {name: neuron for name, (_, neuron) in layers.items()}, dict[str, Tensor]()
    loss = {}
    with streaming(snn):
        for T in range(1, wanted[-1] + 1):
            for name, ys in _outputs(snn, neurons, x[None]).items():
                y = torch.cat([y.flatten() for y in ys])
                total[name] = total.get(name, 0) + y
            if T in wanted:
                loss[T] = {
                    name: _distance(sum_ / T, torch.cat([y.flatten() for y in exact[name]]))
                    for name, sum_ in total.items()
                }
    return loss


def _distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))
