"""`Sequential`: torch's own, with the neighbours in it run as spiking blocks.

It finds `OverTime(..., convolution or linear, [BatchNorm])`, a neuron and `OverTime(2x2 pool, ...)` that stand one after the
other, also across nested Sequentials, and hands them to `fusion.Block`. Names of parameters, printing and slicing are those of
`nn.Sequential`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..kernel.call import SpikeInfo
from ..neuron.lif import LIF
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
    """Layers one after the other on `[T, B, ...]`: `nn.Sequential`, in which neighbours run as one op where they can.

    The result is that of `nn.Sequential` to rounding, and faster; `bs.explain` says what runs together. A layer that has a
    hook, or a subclass of a known one, is called as it is. Of a nested Sequential without hooks the layers are taken.
    """

    def forward(self, x: Tensor) -> Any:
        return run(self, x)

    def spiking_blocks(self) -> list[Block]:
        return [step for step in plan(self) if isinstance(step, Block)]


@dataclass(frozen=True)
class Stateless:
    """Layers that run with T folded into the batch."""

    layers: list[nn.Module]

    def step(self, x: Tensor, sent: SpikeInfo | None) -> tuple[Tensor, SpikeInfo | None]:
        moved = all(is_plain(layer, (nn.Flatten,)) for layer in self.layers)
        return over_time(x, self.layers, sent), sent if moved else None


@dataclass(frozen=True)
class Called:
    """A module that is called as it is."""

    module: nn.Module

    def step(self, x: Any, sent: SpikeInfo | None) -> tuple[Any, None]:
        return self.module(x), None


Step = Block | Stateless | Called


def run(layers: Iterable[nn.Module], x: Any) -> Any:
    """The layers one after the other, neighbours together."""
    sent: SpikeInfo | None = None
    steps = plan(layers)
    for i, step in enumerate(steps, 1):
        if isinstance(step, Block):
            x = step.run_synapse(x, sent)  # what came in is let go of before the neurons fire
            x, sent = step.run_neuron(x, _reader(steps[i:]))
        else:
            x, sent = step.step(x, sent)
    return x


def _reader(steps: Sequence[Step]) -> nn.Linear | None:
    """The linear layer that reads what enters these steps."""
    layers: list[nn.Module | None] = []
    for step in steps:
        layers += (
            step.layers
            if isinstance(step, Stateless)
            else [step.product]
            if isinstance(step, Block)
            else [None]
        )
        if not isinstance(step, Stateless):
            break
    return first_linear(layers)


def plan(layers: Iterable[nn.Module]) -> list[Step]:
    """What runs for these layers, in order. It follows from the modules as they are now, hooks included."""
    steps: list[Step] = []
    waiting: list[nn.Module] = []  # stateless layers that no step holds yet
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
    """The layers, with those of a Sequential in its place; with whether they are stateless, to be run over time."""
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
