"""Estimates the energy per inference from the counts of `op_count.py`, and compares it with an
equivalent non-spiking network.

The constants are those of Horowitz 2014 (Computing's energy problem, ISSCC, figure 1.1.9; 45 nm,
0.9 V), as is common in the literature on spiking networks: a 32-bit floating-point multiplication
takes 3.7 pJ, an addition 0.9 pJ; reading 64 bits from an 8 kB cache takes 10 pJ, from DRAM at least
1.3 nJ. The equivalent network computes the same layers once, with real numbers.

Memory traffic: the non-spiking network reads each weight and input and writes each output once.
The spiking network does so at every computed timestep, with as many bits per input as needed; every
neuron reads and writes its membrane and writes one bit. If the first layer's input repeats, its
output is written once and read at every timestep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

# pJ per addition, and per multiply-accumulate
AC = 0.9
MAC = 3.7 + AC
# pJ per 32-bit word
SRAM = 10 / 2
DRAM = 1300 / 2

_KEYS = (
    *("name", "kind", "steps", "macs", "additions", "products", "spikes"),
    *("weights", "inputs", "outputs", "bits"),
)


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates, additions, and 32-bit words moved, per sample."""

    macs: float = 0.0
    acs: float = 0.0
    words: float = 0.0

    @property
    def arithmetic(self) -> float:
        """Energy of the arithmetic in pJ."""
        return MAC * self.macs + AC * self.acs

    def with_memory(self, word: float) -> float:
        """Energy in pJ if moving a 32-bit word takes `word` pJ."""
        return self.arithmetic + word * self.words

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.acs + other.acs, self.words + other.words)


@dataclass(frozen=True)
class Layer:
    """A layer's costs per sample.

    steps: computed timesteps. spikes: those that enter a synaptic layer or that neurons emit (nan
    without spikes). ann: the equivalent non-spiking layer. snn: the spiking layer.
    """

    name: str
    kind: str
    steps: int
    spikes: float
    ann: Cost
    snn: Cost


def layers(arrays: Mapping[str, np.ndarray], T: int) -> list[Layer]:
    """The layers in the order in which they ran, from the arrays `op_*`; [] if one is missing."""
    if any(f"op_{key}" not in arrays for key in (*_KEYS, "samples")):
        return []
    return [_layer(T, *values) for values in zip(*(arrays[f"op_{key}"].tolist() for key in _KEYS))]


def _layer(
    T: int,
    name: str,
    kind: str,
    steps: int,
    macs: float,
    additions: float,
    products: float,
    spikes: float,
    weights: int,
    inputs: int,
    outputs: int,
    bits: int,
) -> Layer:
    if kind == "neurons":
        # leak and input take one multiply-accumulate, and each multiplication or function in
        # equations of one's own takes one; membrane or states in, the same out, one spike out
        snn = Cost(macs * steps, 0.0, steps * (2 * inputs + outputs / 32))
        return Layer(name, kind, steps, spikes, Cost(), snn)
    words = steps * (weights + inputs * bits / 32) + (outputs * (1 + T) if steps < T else 0)
    if math.isnan(additions):
        snn = Cost(macs * steps, 0.0, words)
    elif AC * additions <= MAC * products:
        # one addition per spike
        snn = Cost(0.0, additions, words)
    else:
        # spikes are summed first, then multiplied
        snn = Cost(products, 0.0, words)
    return Layer(name, kind, steps, spikes, Cost(macs, 0.0, weights + inputs + outputs), snn)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of all costs."""
    return sum(costs, Cost())
