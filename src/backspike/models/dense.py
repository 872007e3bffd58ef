"""Networks of linear layers, for inputs without a place, `[T, B, F]`: the spikes of an artificial cochlea (SHD, SSC).

A block is a linear layer without bias, BatchNorm over time and batch, a neuron, and dropout. The last linear layer does not
spike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..layers.norm import NormLayer
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential, run
from ..neuron.lif import LIF
from ..neuron.recurrent import Recurrent

Neuron = Callable[..., nn.Module]


def spiking_linear(inputs: int, features: int) -> nn.Linear:
    """A linear layer before a neuron, with no norm between them: weights of variance 6 / inputs. Ours.

    Where a sixth of the inputs are spikes, the currents so have the variance of 1 that a norm gives other layers. torch's own
    weights have an 18th of that: the currents stay below the threshold, no neuron fires and, where the surrogate is zero there,
    nothing learns. The 2 / inputs of He et al. 2015 keep a signal alive through ReLU, not through neurons that rarely fire.
    """
    layer = nn.Linear(inputs, features)
    nn.init.normal_(layer.weight, std=math.sqrt(6 / inputs))
    return layer


def batch_norm(channels: int, branches: int = 1) -> nn.Module:
    """torch's BatchNorm, for networks of features that may be given another norm."""
    return nn.BatchNorm1d(channels)


class MLPNet(nn.Module):
    """`features`, spiking, then `classifier`, not spiking: `[T, B, F] -> [T, B, K]`."""

    def __init__(self, features: nn.Sequential, classifier: OverTime, in_channels: int) -> None:
        super().__init__()
        self.features, self.classifier, self.in_channels = features, classifier, in_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.in_channels:
            raise ValueError(
                f"expected input [T, B, {self.in_channels}], got shape {list(x.shape)}"
            )
        return run((self.features, self.classifier), x)


def mlp(
    num_classes: int = 20,
    in_channels: int = 700,
    *,
    hidden: Sequence[int] = (128, 128),
    recurrent: bool = False,
    dropout: float = 0.0,
    neuron: Neuron = LIF,
    norm: NormLayer = batch_norm,
) -> MLPNet:
    """Spiking linear layers of `hidden` features, and one that does not spike.

    recurrent: the spikes of each layer come back to it a timestep later, see `bs.Recurrent`, by weights that begin orthogonal.
    dropout: the share of spikes that are dropped behind each layer, drawn for every timestep.
    """
    blocks: list[nn.Module] = []
    for inputs, features in zip((in_channels, *hidden), hidden):
        blocks += [
            OverTime(nn.Linear(inputs, features, bias=False), norm(features)),
            _spiking(features, recurrent, neuron),
        ]
        blocks += [OverTime(nn.Dropout(dropout))] if dropout else []
    return MLPNet(
        Sequential(*blocks),
        OverTime(nn.Linear((in_channels, *hidden)[-1], num_classes)),
        in_channels,
    )


def _spiking(features: int, recurrent: bool, neuron: Neuron) -> nn.Module:
    if not recurrent:
        return neuron(channels=features)
    back = nn.Linear(features, features, bias=False)
    nn.init.orthogonal_(back.weight)
    return Recurrent(back, neuron(channels=features))
