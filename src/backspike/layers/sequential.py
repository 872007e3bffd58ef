"""`Sequential`: torch's `nn.Sequential`, with neighbouring layers fused into spiking blocks.

It finds `OverTime(..., convolution or linear, [BatchNorm])`, a neuron and `OverTime(2x2 pool, ...)`
in a row, also across nested Sequentials, and runs them as a `Block`. Parameter names, printing and
slicing are those of `nn.Sequential`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..kernel.call import SpikeInfo
from ..neuron.lif import LIF
from ..neuron.recurrent import Recurrent
from .block import Block
from .over_time import (
    BATCH_NORMS,
    POOLS,
    SYNAPSES,
    OverTime,
    first_linear,
    flatten_layers,
    has_hooks,
    is_plain,
    over_time,
)


class Sequential(nn.Sequential):
    """`nn.Sequential` on `[T, B, ...]` that fuses neighbouring layers into one op where possible.

    Same result as `nn.Sequential` up to rounding, but faster; `bs.explain` shows what is fused.
    Layers with hooks, and subclasses of known layers, are called by themselves.
    """

    def forward(self, x: Tensor) -> Any:
        return run(self, x)

    def spiking_blocks(self) -> list[Block]:
        return [step for step in plan(self) if isinstance(step, Block)]


@dataclass(frozen=True)
class Stateless:
    """Layers that run with T folded into the batch."""

    layers: list[nn.Module]

    def step(self, x: Tensor, info: SpikeInfo | None) -> tuple[Tensor, SpikeInfo | None]:
        moved = all(is_plain(layer, (nn.Flatten,)) for layer in self.layers)
        return over_time(x, self.layers, info), info if moved else None


@dataclass(frozen=True)
class Called:
    """A module that is called by itself."""

    module: nn.Module

    def step(self, x: Any, info: SpikeInfo | None) -> tuple[Any, SpikeInfo | None]:
        if isinstance(self.module, Recurrent) and is_plain(self.module, (Recurrent,)):
            return self.module.run(x)
        return self.module(x), None


Step = Block | Stateless | Called


def run(layers: Iterable[nn.Module], x: Any) -> Any:
    """Run the layers in turn, neighbours fused."""
    info: SpikeInfo | None = None
    steps = plan(layers)
    for i, step in enumerate(steps, 1):
        if isinstance(step, Block):
            x = step.run_synapse(x, info)  # frees the memory of x before the neurons run
            x, info = step.run_neuron(x, _reader(steps[i:]))
        else:
            x, info = step.step(x, info)
    return x


def _reader(steps: Sequence[Step]) -> nn.Linear | None:
    """The linear layer that reads the input of these steps, if any."""
    layers: list[nn.Module | None] = []
    for step in steps:
        if not isinstance(step, Stateless):
            layers.append(step.product if isinstance(step, Block) else None)
            break
        layers += step.layers
    return first_linear(layers)


def plan(layers: Iterable[nn.Module]) -> list[Step]:
    """The steps that run these layers; depends on the present modules and their hooks."""
    steps: list[Step] = []
    waiting: list[nn.Module] = []  # stateless layers not yet in a step
    items = deque(_items(layers))
    while items:
        m, stateless = items.popleft()
        if stateless:
            waiting.append(m)
            continue
        spikes = isinstance(m, LIF)
        norm = (
            waiting.pop() if spikes and waiting and isinstance(waiting[-1], BATCH_NORMS) else None
        )
        product = (
            waiting.pop() if spikes and waiting and isinstance(waiting[-1], SYNAPSES) else None
        )
        if waiting:
            steps.append(Stateless(waiting))
            waiting = []
        if spikes:
            pool = (
                items.popleft()[0]
                if items and isinstance(items[0][0], POOLS) and items[0][1]
                else None
            )
            steps.append(Block(product, norm, m, pool))
        else:
            steps.append(Called(m))
    return [*steps, Stateless(waiting)] if waiting else steps


def _items(layers: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, bool]]:
    """Yield (layer, whether it is stateless and runs over time), nested Sequentials flattened."""
    for m in layers:
        if (
            isinstance(m, nn.Sequential)
            and type(m) in (Sequential, nn.Sequential)
            and not has_hooks(m)
        ):
            yield from _items(m)
        elif isinstance(m, OverTime) and is_plain(m, (OverTime,)):
            yield from ((layer, True) for layer in flatten_layers(m))
        else:
            yield m, is_plain(m, (nn.Linear,))
