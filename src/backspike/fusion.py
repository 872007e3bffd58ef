"""A spiking block: product (convolution or linear), BatchNorm, neuron and pool, as one op where nothing forbids it.

`block(x, product, norm, neuron, pool)` is what calling the four one after the other gives, to rounding. A hook on any of them
still fires, because then that one is called. BatchNorm, neuron and 2x2 pool together keep the output of the product and
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import kernel
from .kernel.constants import state_dtype
from .kernel.norm import Norm, norm_lif
from .layer import BATCH_NORMS, POOLS, once, over_time, plain
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
        neuron = self.neuron
        if neuron is None:
            return over_time(x, _given(self.product, self.norm, self.pool))
        if not isinstance(neuron, LIF) or why_called(neuron):
            return over_time(neuron(over_time(x, _given(self.product, self.norm))), _given(self.pool))
        return self._apart(x, neuron) if self.why_norm_apart() else self._as_one(x, neuron)

    def why_norm_apart(self) -> str:
        """Why the norm does not run as one op with the neuron; "" where it does."""
        if self.norm is None:
            return "there is none"
        if any(w.membrane for w in getattr(self.neuron, "watchers", ())):
            return "the membrane is recorded"
        if type(self.norm) not in BATCH_NORMS:
            return f"{type(self.norm).__name__} is not torch's BatchNorm"
        return "" if plain(self.norm, BATCH_NORMS) else "it has hooks"

    def why_pool_apart(self) -> str:
        """Why the pool does not run as one op with norm and neuron; "" where it does."""
        if self.why_norm_apart():
            return "only with a BatchNorm before the neuron they are one"
        if isinstance(self.neuron, LIF) and self.neuron.watchers:
            return "the spikes are watched"
        return "" if pool_kind(self.pool) else "it is not torch's pool of 2x2 or has hooks"

    def _as_one(self, x: Tensor, neuron: LIF) -> Tensor:
        y, repeats = once(x, _given(self.product))
        pool = None if self.pool is None or self.why_pool_apart() else pool_kind(self.pool)
        seen = neuron._streams or bool(neuron.watchers)
        spikes, state, moments = norm_lif(neuron.call(y), _norm(self.norm, y), pool, neuron.backend, repeats, want_state=seen)
        if seen and state is not None:
            neuron.see(Output(spikes, state, None), moments)
        return spikes if pool else over_time(spikes, _given(self.pool))

    def _apart(self, x: Tensor, neuron: LIF) -> Tensor:
        y = over_time(x, _given(self.product))
        # in the state's dtype, as the op that joins them computes: recorded or not, the spikes are the same
        z = over_time(y.to(state_dtype(y)), _given(self.norm)) if self.norm is not None else y
        spikes, state, membrane, moments = kernel.dispatch(neuron.backend, neuron.call(z))
        spikes = spikes.to(y.dtype)
        neuron.see(Output(spikes, state, membrane), moments)
        return over_time(spikes, _given(self.pool))


def _given(*layers: nn.Module | None) -> Sequence[nn.Module]:
    return [layer for layer in layers if layer is not None]


def why_called(neuron: LIF) -> str:
    """Why a neuron is called as a module, apart from the other layers of its block; "" where it is not."""
    if torch.compiler.is_compiling():
        return "under torch.compile"
    return "" if plain(neuron, (LIF, IF)) else "it is a subclass or has hooks"


def pool_kind(pool: Any) -> str | None:
    """ "avg" or "max" for torch's pool of 2x2 windows side by side, an odd last row or column left out; None for others."""
    if not plain(pool, POOLS):
        return None
    ours = (2, (2, 2))
    if pool.kernel_size not in ours or pool.stride not in ours or pool.padding not in (0, (0, 0)) or pool.ceil_mode:
        return None
    if isinstance(pool, nn.AvgPool2d):
        return "avg" if pool.divisor_override is None else None
    return "max" if pool.dilation in (1, (1, 1)) and not pool.return_indices else None


def _norm(norm: Any, y: Tensor) -> Norm:
    """What this BatchNorm does in a forward pass on y `[T, B, C, ...]`; counts the pass as the module would."""
    norm._check_input_dim(y[0])  # of as many dimensions as y with T folded into the batch
    share = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else share
    tracks = norm.running_mean is not None and (norm.track_running_stats or not norm.training)
    mean, variance = (norm.running_mean, norm.running_var) if tracks else (None, None)
    return Norm(norm.weight, norm.bias, mean, variance, norm.training or not tracks, share, norm.eps)
