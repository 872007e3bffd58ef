"""An estimate of the energy of one inference, beside the equal network without spikes: from the counts of `op_count.py`.

The constants are those of Horowitz 2014 (Computing's energy problem, ISSCC, figure 1.1.9; 45 nm, 0.9 V), as the literature of
spiking networks uses them: 32-bit floating-point multiplication 3.7 pJ, addition 0.9 pJ; 64 bits from a cache of 8 kB 10 pJ,
from DRAM at least 1.3 nJ. The equal network has the same layers, computes them once and with real numbers.

What moves: a network without spikes reads each weight and each input and writes each output once. With spikes this is done anew
at every timestep that is computed, inputs with as many bits as they need; every neuron reads and writes its membrane and writes
a bit. What a first layer makes of an input that repeats is written once and read at every timestep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

AC = 0.9  # pJ, an addition
MAC = 3.7 + AC
SRAM = 10 / 2  # pJ, a word of 32 bits
DRAM = 1300 / 2


@dataclass(frozen=True)
class Cost:
    """Of one sample: multiply-accumulates, additions, and words of 32 bits moved."""

    macs: float = 0.0
    acs: float = 0.0
    words: float = 0.0

    @property
    def arithmetic(self) -> float:
        """In pJ."""
        return MAC * self.macs + AC * self.acs

    def with_memory(self, word: float) -> float:
        """In pJ, every word moved at this price."""
        return self.arithmetic + word * self.words

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.macs + other.macs, self.acs + other.acs, self.words + other.words)


@dataclass(frozen=True)
class Layer:
    """steps: timesteps that are computed; spikes: that enter a product or that neurons send, per sample (nan: none)."""

    name: str
    kind: str
    steps: int
    spikes: float
    ann: Cost
    snn: Cost


def layers(arrays: Mapping[str, np.ndarray], T: int) -> list[Layer]:
    """The layers in the order in which they ran, from the arrays `op_*`; none where one of those is missing."""
    keys = (
        "name",
        "kind",
        "steps",
        "macs",
        "additions",
        "products",
        "spikes",
        "weights",
        "inputs",
        "outputs",
        "bits",
    )
    if any(f"op_{key}" not in arrays for key in (*keys, "samples")):
        return []
    return [_layer(T, *values) for values in zip(*(arrays[f"op_{key}"].tolist() for key in keys))]


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
    if (
        kind == "neurons"
    ):  # leak and input: one multiply-accumulate; membrane in, membrane out, a spike out
        return Layer(
            name,
            kind,
            steps,
            spikes,
            Cost(),
            Cost(macs * steps, 0.0, steps * outputs * (2 + 1 / 32)),
        )
    words = steps * (weights + inputs * bits / 32) + (outputs * (1 + T) if steps < T else 0)
    if math.isnan(additions):
        snn = Cost(macs * steps, 0.0, words)
    elif AC * additions <= MAC * products:  # spike by spike
        snn = Cost(0.0, additions, words)
    else:  # spikes that were added up first
        snn = Cost(products, 0.0, words)
    return Layer(name, kind, steps, spikes, Cost(macs, 0.0, weights + inputs + outputs), snn)


def total(costs: Iterable[Cost]) -> Cost:
    return sum(costs, Cost())
