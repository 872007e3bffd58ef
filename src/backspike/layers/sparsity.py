"""Decide from measured densities how a synaptic layer computes: sparsely, densely or fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..kernel.cpu import sparse
from .fast_convolution import FAST_BELOW, Costs, multiplies_tiles

# Densities below which a way of computing is the fastest. Measured on a Zen 4 core (avx512_bf16)
# with 2048 samples, 1024 inputs and 1024 outputs, in ms for float32 / bfloat16: dense 47 / 20;
# gather 11 / 10.5 at 10 % and 20 / 19 at 20 %; lookup 13 / 13 at any density; sample 14 / 8 at
# 10 %, 31 / 16 at 30 %, 62 / 26 at 50 %. Each dot product costs START multiplications of overhead.
GATHER_BELOW = 0.13
SAMPLE_BELOW, START = 0.40, 130
LOOKUP_ROWS = 256  # with fewer rows the tables do not pay off

# For bfloat16 on a processor with tile multiplication (AMX) the limits are multiplied by this, and
# lookup never pays. Calculated, not measured.
TILED = 0.25
MARGIN = 0.1  # hysteresis: a way is left once its limit is exceeded by this fraction
WORTH_IT = 1 << 22  # multiplications of a dense layer; below, the overhead exceeds the gain
FEWEST = 64  # rows and inputs, below which the overhead exceeds the gain
FEWEST_OUTPUTS = 16  # fewer leave SIMD lanes empty

# The same for convolutions: forward, weight gradient. Measured on two shared Zen 4 cores, so only
# ratios count: 3x3, 64 images of 64 channels at 32x32, in ms, bfloat16: dense 19.0, 25.7; sparse
# 2.5, 3 at 3 %; 6.2, 9.1 at 10 %; 10.4, 16.6 at 20 %; 18.7, 25 at 30 %. float32: dense 37, 48;
# sparse 7.3, 6.1 at 10 %; 21, 22 at 30 %; 32, 32 at 50 %. Other sizes with 32 to 512 channels, 1x1
# and stride 2 break even at 20 to 38 % and from 40 % on; values other than 1 at 3/4 of that.
EVENTS_BELOW = {torch.float32: (0.4, 0.5), torch.bfloat16: (0.25, 0.2)}
VALUED = 0.75
FEWEST_CHANNELS = 16
# From this density on, looking up the weight gradient takes less time than events. With 3x3 weights
# and 64 to 512 channels that is 0.18 to 0.20 on a Xeon and, calculated, 0.10 to 0.13 on Zen 4.
LOOKUP_FROM = 0.15
_WAYS = {
    "forward": ("dense", "gather", "lookup", "winograd"),
    "weight": ("dense", "gather", "lookup", "product", "winograd"),
    "input": ("dense", "sample", "winograd"),
}
_STATE = (*_WAYS, "spikes", "h")


@dataclass
class SparsityPlan:
    """How a linear layer or convolution computes, and the densities that decided it.

    forward, weight, input: the way of computing the output, the weight gradient and the input
    gradient, out of `_WAYS`.
    spikes: fraction of inputs that are nonzero; None if the inputs are not spikes.
    h: fraction of the preceding neurons with a nonzero surrogate derivative; None if unknown.
    why: for a convolution that may be fast, why it is or is not.

    Decisions have hysteresis, so that a density near a limit does not switch at every step; an
    exact resume therefore needs `load(state())`.
    """

    forward: str = "dense"
    weight: str = "dense"
    input: str = "dense"
    spikes: float | None = None
    h: float | None = None
    why: str = field(default="", compare=False)

    def state(self) -> dict[str, str | float | None]:
        return {name: getattr(self, name) for name in _STATE}

    def load(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            value = state[name]
            if value not in _WAYS[name] if name in _WAYS else not isinstance(value, float | None):
                raise ValueError(f"sparsity plan: {name} is {value!r}")
            setattr(self, name, value)

    def __str__(self) -> str:
        words = {"dense": "dense", "gather": "sparse", "lookup": "by lookup", "sample": "sampled"}
        words |= {"winograd": "fast", "product": "as one product"}
        spikes = "no spikes" if self.spikes is None else f"spikes {_percent(self.spikes)}"
        h = "" if self.h is None else f" (h {_percent(self.h)})"
        products = f"forward {words[self.forward]} ({spikes}), weight gradient {words[self.weight]}"
        why = f"; {self.why}" if self.why else ""
        return f"{products}, input gradient {words[self.input]}{h}{why}"

    def decide(
        self, dtype: torch.dtype, M: int, K: int, N: int, spikes: float | None, h: float | None
    ) -> SparsityPlan:
        """Decide for a linear layer with `[M, K]` inputs and N outputs; returns self."""
        if not worth_it(dtype, M, K, N):
            self.forward = self.weight = self.input = "dense"
        else:
            tiled = multiplies_tiles(dtype)
            part = TILED if tiled else 1.0
            gather, lookup = ("gather", GATHER_BELOW * part), ("lookup", 2.0)
            self.forward = _way(
                self.forward, [gather] + [lookup] * (M >= LOOKUP_ROWS and not tiled), spikes
            )
            self.weight = _way(
                self.weight, [gather] + [lookup] * (K >= LOOKUP_ROWS and not tiled), spikes
            )
            self.input = _way(self.input, [("sample", SAMPLE_BELOW * part * N / (N + START))], h)
        self.spikes, self.h = spikes, h
        return self

    def decide_events(
        self,
        dtype: torch.dtype,
        binary: bool,
        spikes: float | None,
        costs: Costs | None = None,
        product: bool = False,
    ) -> SparsityPlan:
        """Decide for a convolution that is large enough (see `synapse._window`); returns self.

        costs: of the fast ways, if they may be used. product: whether one matrix product is the
        fastest dense way of the weight gradient.
        """
        part = TILED if multiplies_tiles(dtype) else 1.0
        part *= 1.0 if binary else VALUED
        forward, weight = (part * limit for limit in EVENTS_BELOW[dtype])
        costs = costs or Costs()
        fast = costs.forward < FAST_BELOW
        # the time of events grows with the density and is the dense time at the limit
        limit = forward * costs.forward if fast else forward
        dense = "winograd" if fast else "dense"
        self.forward = _way(self.forward, [("gather", limit)], spikes, dense)
        if binary and costs.lookup < FAST_BELOW:
            self.weight = _way(self.weight, [("gather", LOOKUP_FROM)], spikes, "lookup")
        elif costs.weight < FAST_BELOW:
            limit = weight * costs.weight
            self.weight = _way(self.weight, [("gather", limit)], spikes, "winograd")
        else:
            dense = "product" if product else "dense"
            self.weight = _way(self.weight, [("gather", weight)], spikes, dense)
        self.input = "winograd" if costs.input < FAST_BELOW else "dense"
        self.spikes, self.why = spikes, costs.why
        return self

    def reads_events(self) -> bool:
        """Whether a convolution reads its input as spikes in channels-last order."""
        return self.forward == "gather" or self.weight in ("gather", "lookup")

    def refuse(self, product: str) -> None:
        """Note that the fast way refused the numbers of "forward", "weight" or "input"."""
        setattr(self, product, "dense")
        self.why = "dense where numbers are not finite or differ too much"


def worth_it(dtype: torch.dtype, M: int, K: int, N: int) -> bool:
    """Whether a layer of this size can be faster sparse than dense at all."""
    return (
        min(M, K) >= FEWEST
        and N >= FEWEST_OUTPUTS
        and M * K * N >= WORTH_IT
        and dtype in sparse.DTYPES
        and sparse.available()
    )


def _way(
    now: str, limits: list[tuple[str, float]], density: float | None, otherwise: str = "dense"
) -> str:
    """The first way whose limit exceeds the density, with hysteresis towards the current one."""
    if density is None:
        return otherwise
    ways = [way for way, _ in limits]
    current = ways.index(now) if now in ways else len(ways)  # dense, or not offered at this size
    for i, (way, limit) in enumerate(limits):
        if density < limit * (1 + MARGIN if current <= i else 1 - MARGIN):
            return way
    return otherwise


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def plan_of(layer: nn.Module) -> SparsityPlan:
    """The plan of the layer, created when first asked for; copies of the layer copy it."""
    if not isinstance(layer.__dict__.get("choice"), SparsityPlan):
        layer.__dict__["choice"] = SparsityPlan()
    return layer.__dict__["choice"]


def plans(model: nn.Module) -> Iterator[tuple[str, SparsityPlan]]:
    """Yield (name, plan) of the layers that have one."""
    for name, m in model.named_modules():
        if isinstance(m.__dict__.get("choice"), SparsityPlan):
            yield name, m.__dict__["choice"]


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All plans of a model as plain values, for a checkpoint."""
    return {name: plan.state() for name, plan in plans(model)}


def load(model: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Restore the result of `state`, also into a model that has not run yet."""
    for name, values in state.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        plan_of(layer).load(values)
