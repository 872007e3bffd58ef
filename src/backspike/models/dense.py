"""Networks of linear layers, for inputs without height and width, `[T, B, C]`: SHD and SSC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .network import Layer

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class MLP:
    """Spiking linear layers and a last one that does not spike.

    hidden: their features.
    recurrent: the spikes of each layer are fed back to it one timestep later (`bs.Recurrent`), by weights that start orthogonal.
    dropout: the probability of dropping a spike behind each layer, drawn for every timestep.
    """

    num_classes: int = 20
    in_channels: int = 700
    hidden: tuple[int, ...] = (128, 128)
    recurrent: bool = False
    dropout: float = 0.0

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from .plain import build_mlp

        return build_mlp(self, neuron, norm)
