"""Spikformer (Zhou et al. 2022, arXiv 2209.15425); its layers are in `attention.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .network import Layer, Network

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Spikformer(Network):
    """Spikformer-4-384 (Zhou et al. 2022, arXiv 2209.15425), for 32x32 images in 8x8 tokens.

    dim: features per token. depth: number of encoders. heads: number of attention heads.
    """

    dim: int = 384
    depth: int = 4
    heads: int = 12

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module:
        from .attention import SpikformerNet

        return SpikformerNet(self, neuron, norm)
