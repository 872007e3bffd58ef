"""A spiking block: product (convolution or linear), BatchNorm, neuron and pool, as one op where nothing forbids it.

`block(x, product, norm, neuron, pool)` is what calling the four one after the other gives, to rounding: a hook on any of them
still fires, because then that one is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import kernel
from .layer import once, over_time, plain
from .neuron import IF, LIF, Output


def block(
    x: Tensor,
    product: nn.Module | None = None,
    norm: nn.Module | None = None,
    neuron: nn.Module | None = None,
    pool: nn.Module | None = None,
) -> Tensor:
    """pool(neuron(norm(product(x)))) over time, `[T, B, ...] -> [T, B, ...]`; what is None is left out.

    product: torch's convolution or linear layer; norm: its BatchNorm, with statistics over time, batch and space; neuron:
    `bs.LIF`; pool: torch's. Other modules, and modules that someone hooked into, are called one after the other.
    """
    return Block(product, norm, neuron, pool).run(x)


@dataclass(frozen=True)
class Block:
    """The layers of a block, and how they run."""

    product: nn.Module | None = None
    norm: nn.Module | None = None
    neuron: nn.Module | None = None
    pool: nn.Module | None = None

    def run(self, x: Tensor) -> Tensor:
        if self.neuron is None:
            return over_time(x, _given(self.product, self.norm, self.pool))
        if self.obstacle():
            return over_time(self.neuron(over_time(x, _given(self.product, self.norm))), _given(self.pool))
        assert isinstance(self.neuron, LIF)
        y, repeats = once(x, _given(self.product, self.norm))
        call = self.neuron.call(y.expand(repeats, *y.shape[1:]) if repeats > 1 else y)
        spikes, state, membrane, moments = kernel.dispatch(self.neuron.backend, call)
        self.neuron.see(Output(spikes, state, membrane), moments)
        return over_time(spikes, _given(self.pool))

    def obstacle(self) -> str:
        """Why the neuron is called as a module and not as a part of the block, or ""."""
        if torch.compiler.is_compiling():
            return "under torch.compile"
        if not isinstance(self.neuron, LIF):
            return f"{type(self.neuron).__name__} is no LIF"
        if not plain(self.neuron, (LIF, IF)):
            return "it is a subclass or has hooks"
        if any(w.membrane for w in self.neuron.watchers):
            return "its membrane is recorded"
        return ""


def _given(*layers: nn.Module | None) -> Sequence[nn.Module]:
    return [layer for layer in layers if layer is not None]
