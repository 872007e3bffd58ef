"""What a spiking layer did over a few batches: rates, share within the surrogate, potentials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..neuron.lif import LIF, Output
from .activity import distances, in_support

# a channel that fires at this share of its positions and timesteps counts as always firing
ALWAYS = 0.99
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.99)
# approximate number of potentials per timestep and batch from which quantiles are computed
_SAMPLED = 1 << 11


@dataclass(frozen=True)
class Layer:
    """A spiking layer. Lists have a value per timestep. Gradients are those at its input currents,
    over all samples and positions."""

    firing_rate: list[float]
    # share of the potentials where the derivative h exceeds 1 % of its peak
    support_share: list[float]
    # norm; nan if no gradient arrives
    gradient: list[float]
    # norm of what the path through the reset adds, relative to the rest; None: no such path
    reset_ratio: list[float] | None
    # norm with the mask relative to the norm without it; None: no mask
    mask_left: list[float] | None
    # share of channels that never fire
    dead: float
    # share of channels that always fire
    saturated: float
    spikes_per_sample: float
    # quantiles of the membrane potential u
    potential: dict[str, float]
    # quantiles of abs(u - threshold)
    distance: dict[str, float]

    @property
    def rate(self) -> float:
        """The mean firing rate."""
        return sum(self.firing_rate) / len(self.firing_rate)

    @property
    def support(self) -> float:
        """The mean share of potentials within the surrogate."""
        return sum(self.support_share) / len(self.support_share)

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradient over all timesteps."""
        return math.sqrt(sum(g * g for g in self.gradient))


class Tally:
    """Sums over the batches for one layer."""

    def __init__(self) -> None:
        self.T = 0
        self.samples = 0
        self.elements = 0
        self.calls = 0
        self.spikes: Any = 0.0
        self.support: Any = 0.0
        self.channels: Any = 0.0
        self.potentials: list[Tensor] = []
        self.distances: list[Tensor] = []

    def add(self, layer: LIF, out: Output) -> None:
        s, u = out.spikes, out.membrane
        assert s is not None
        assert u is not None
        s = s.detach()
        self.T, self.calls = len(s), self.calls + 1
        self.samples += s.shape[1]
        self.elements += s[0].numel()
        self.spikes = self.spikes + s.sum(list(range(1, s.dim())), dtype=torch.float64).cpu()
        support = []
        for z in distances(layer, out):
            support.append(in_support(layer, z).sum(dtype=torch.float64).cpu())
            self.distances.append(_sample(z[0]).abs())
        self.support = self.support + torch.stack(support)
        self.potentials += [_sample(u_t) for u_t in u.detach()]
        other_dims = [d for d in range(s.dim()) if d != 2]
        by_channel = s if s.dim() > 2 else s[:, :, None]
        self.channels = self.channels + by_channel.mean(other_dims, dtype=torch.float64).cpu()

    def layer(
        self,
        batches: int,
        energy: list[float],
        reset: list[float] | None,
        mask_left: list[float] | None,
    ) -> Layer:
        rates = self.channels / self.calls
        u, z = torch.cat(self.potentials), torch.cat(self.distances)
        return Layer(
            firing_rate=(self.spikes / self.elements).tolist(),
            support_share=(self.support / self.elements).tolist(),
            gradient=[math.sqrt(e) if e == e else math.nan for e in energy],
            reset_ratio=reset,
            mask_left=mask_left,
            dead=float((rates == 0).double().mean()),
            saturated=float((rates >= ALWAYS).double().mean()),
            spikes_per_sample=float(self.spikes.sum() / self.samples),
            potential=_quantiles(u),
            distance=_quantiles(z),
        )


def _sample(x: Tensor) -> Tensor:
    """About `_SAMPLED` elements of one timestep `[B, ...]`, from as few samples as possible."""
    samples = min(len(x), -(-_SAMPLED // x[0].numel()))
    flat = x.detach()[:: len(x) // samples].flatten().float()
    return flat[:: -(-len(flat) // _SAMPLED)].cpu()


def _quantiles(x: Tensor) -> dict[str, float]:
    x = x.nan_to_num()[:: -(-len(x) // (1 << 22))]
    quantiles = torch.quantile(x, torch.tensor(_QUANTILES))
    return {f"{q}": float(v) for q, v in zip(_QUANTILES, quantiles)}
