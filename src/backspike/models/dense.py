"""Networks of linear layers, for inputs without height and width, `[T, B, C]`: SHD, SSC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .network import Layer, check_sizes

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class MLP:
    """Spiking linear layers and a final linear layer without spikes.

    hidden: the number of features of each spiking layer.
    recurrent: feed the spikes of each layer back to it one timestep later (`bs.Recurrent`), with
    weights initialised orthogonally.
    dropout: the probability of dropping a spike after each layer, drawn anew at every timestep.

    Raises ValueError for a size below 1 or a dropout outside [0, 1).
    """

    num_classes: int = 20
    in_channels: int = 700
    hidden: tuple[int, ...] = (128, 128)
    recurrent: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from .plain import build_mlp

        return build_mlp(self, neuron, norm)
