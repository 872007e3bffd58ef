"""A spiking block: synaptic layer, BatchNorm, neuron and pool, fused into one op where possible.

`block(x, product, norm, neuron, pool)` equals calling the four modules in turn, up to rounding.
Hooks still fire: a module with hooks is called by itself. Fused BatchNorm, neuron and 2x2 pool save
only the output of the synaptic layer for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernel
from ..kernel import Result
from ..kernel.call import SpikeInfo, as_tensor
from ..kernel.coefficients import state_dtype
from ..kernel.norm import Norm, norm_lif
from ..neuron.lif import IF, LIF, PLIF, Output
from ..neuron.prepare import prepare
from ..options import LIF as Options
from ..surrogate import Family, Surrogate, unwrap
from .checkpoint import checkpoint, with_parameters
from .norm import batch_norm_arguments
from .over_time import (
    BATCH_NORMS,
    SYNAPSES,
    apply_once,
    check_input,
    is_plain,
    over_time,
    pool_kind,
    repeats_over_time,
)
from .sparsity import SparsityPlan

_MANY = 1 << 20  # samples; enough for any way of computing to pay off


def block(
    x: Tensor,
    product: nn.Module | None = None,
    norm: nn.Module | None = None,
    neuron: nn.Module | None = None,
    pool: nn.Module | None = None,
) -> Tensor:
    """pool(neuron(norm(product(x)))) over time, `[T, B, ...] -> [T, B, ...]`; None leaves one out.

    product: the synaptic layer, a convolution or linear layer of torch.
    norm: torch's BatchNorm; statistics are taken over time, batch and space.
    neuron: `bs.LIF`. pool: torch's.
    Other modules, and modules with hooks, are called one after the other.

    Raises TypeError if x is not a tensor, and ValueError if it lacks a dimension.
    """
    return Block(product, norm, neuron, pool).run(x)


@dataclass(frozen=True)
class BlockInput:
    """The input of a block's norm and neuron.

    x: the output of the synaptic layer, `[1, B, ...]` if it repeats over T; or, with repeats=None,
    the input of the synaptic layer, which then runs inside an activation checkpoint.
    info: information about the spikes x from the neuron that emitted them.
    """

    x: Tensor
    repeats: int | None
    info: SpikeInfo | None = None

    def over_time(self) -> Tensor:
        """[T, B, ...]."""
        return (
            self.x.expand(self.repeats, *self.x.shape[1:])
            if self.repeats and self.repeats > 1
            else self.x
        )


@dataclass(frozen=True)
class Block:
    """The layers of a block, and how they are run."""

    product: nn.Module | None = None
    norm: nn.Module | None = None
    neuron: nn.Module | None = None
    pool: nn.Module | None = None

    def run(self, x: Tensor) -> Tensor:
        return run_blocks([self], x)

    def run_synapse(self, x: Tensor, info: SpikeInfo | None = None) -> BlockInput:
        """Run the synaptic layer; `run_neuron` continues from the result.

        Split in two so that the memory of x can be freed before the neurons run.
        info: information about x from the neuron that emitted it.
        """
        check_input(x, _present(self.product, self.norm))
        if self.neuron is None:
            return BlockInput(*apply_once(x, _present(self.product, self.norm, self.pool), info))
        if self._recomputes():
            return BlockInput(x, None, info)
        return BlockInput(*apply_once(x, _present(self.product), info))

    def run_neuron(
        self, inputs: BlockInput, reader: nn.Linear | None = None
    ) -> tuple[Tensor, SpikeInfo | None]:
        """Return the spikes, and information about them for the layer that reads them next."""
        neuron = self.neuron
        if neuron is None:
            return inputs.over_time(), None
        if not isinstance(neuron, LIF) or self._why_separate():
            return over_time(
                self._call_separately(inputs.over_time(), neuron), _present(self.pool)
            ), None
        result = self._result(inputs, neuron, reader if self.pool is None else None)
        if self.pool is not None and self.why_pool_separate():
            return over_time(result.spikes, _present(self.pool)), None
        return result.spikes, SpikeInfo.from_result(result)

    def add_to(self, other: Tensor, inputs: BlockInput) -> Tensor:
        """Add the spikes to `other`, as at the end of a residual block; fused where possible."""
        neuron = self.neuron
        if not isinstance(neuron, LIF) or self.norm is None or self._why_separate():
            return self.run_neuron(inputs)[0] + other
        if neuron.watchers or self.pool is not None or inputs.repeats is None:
            return self.run_neuron(inputs)[0] + other
        return self._result(inputs, neuron, None, other).spikes

    def _why_separate(self) -> str:
        """Why the neuron is called as a separate module; "" if it is not."""
        return why_called(self.neuron) or ("" if self.norm is None else self.why_norm_separate())

    def _recomputes(self) -> bool:
        """Whether backward recomputes the block from its input (activation checkpointing)."""
        checkpointed = (
            isinstance(self.neuron, LIF)
            and self.neuron.memory == "checkpoint"
            and is_plain(self.product, SYNAPSES)
            and not any(w.membrane for w in self.neuron.watchers)
        )
        return checkpointed and not self._why_separate()

    def _call_separately(self, y: Tensor, neuron: nn.Module) -> Any:
        """Call norm and neuron, as separate modules, on the output y of the synaptic layer."""
        if self.norm is None:
            return neuron(y)
        # The norm runs in the dtype of the state, as in the fused op, so that the spikes do not
        # depend on hooks or recording; but torch's norms take no input wider than their parameters.
        narrow = any(p.dtype.itemsize == 2 for p in self.norm.parameters())
        return neuron(over_time(y if narrow else y.to(state_dtype(y)), [self.norm])).to(y.dtype)

    def why_norm_separate(self) -> str:
        """Why the norm is not fused with the neuron; "" if it is."""
        if self.norm is None:
            return "there is none"
        if any(w.membrane for w in getattr(self.neuron, "watchers", ())):
            return "the membrane is recorded"
        if len(getattr(self.neuron, "shape", ())) > 1:
            return "the constants differ from neuron to neuron"
        if type(self.norm) not in BATCH_NORMS:
            return f"{type(self.norm).__name__} is not torch's BatchNorm"
        if getattr(self.norm, "synced", False) and self.norm.training:
            return "its statistics are shared between ranks"
        return "" if is_plain(self.norm, BATCH_NORMS) else "it has hooks"

    def why_pool_separate(self) -> str:
        """Why the pool is not fused with norm and neuron; "" if it is."""
        if self.why_norm_separate():
            return "fused only with a BatchNorm before the neuron"
        if isinstance(self.neuron, LIF) and any(w.spikes for w in self.neuron.watchers):
            return "the spikes are watched"
        return "" if pool_kind(self.pool) else "it is not torch's 2x2 pool, or has hooks"

    def _result(
        self, inputs: BlockInput, neuron: LIF, reader: nn.Linear | None, add: Tensor | None = None
    ) -> Result:
        """Run norm and neuron, and the pool if it is fused."""
        x = inputs.x
        neuron.begin(x.device)
        pool = None if self.pool is None or self.why_pool_separate() else pool_kind(self.pool)
        # x has as many dimensions as what the product makes of it
        norm = None if self.norm is None else batch_norm_arguments(self.norm, x[0])
        seen = neuron.streams or bool(neuron.watchers)
        record = neuron.record()
        # recorded spikes may be asked for their gradient, which is then needed everywhere
        alone = norm is None and not record.membrane
        record = record._replace(
            active=alone and reader is not None and _may_be_sampled(neuron, reader),
            bits=torch.is_grad_enabled(),
            state=seen,
        )
        part = _Part(
            self.product,
            inputs.info,
            norm,
            pool,
            neuron.initial_state(None, x if inputs.repeats else None),
            neuron.options,
            neuron.constants(),
            neuron.mask_seed(),
            neuron.mask_p,
            record,
            add,
        )
        result = part.recomputed(x) if inputs.repeats is None else part.result(x, inputs.repeats)
        if seen:
            neuron.see(Output(result.spikes, result.state, result.membrane), result.moments)
        return result


def run_blocks(blocks: Iterable[Block], x: Any, add: Tensor | None = None) -> Tensor:
    """Run the blocks in turn on x `[T, B, ...]`; add: a tensor to add to the last spikes."""
    *before, last = blocks
    info: SpikeInfo | None = None
    for block in before:
        x = block.run_synapse(x, info)  # frees the memory of x before the neurons run
        x, info = block.run_neuron(x)
    x = last.run_synapse(x, info)
    return last.run_neuron(x)[0] if add is None else last.add_to(add, x)


@dataclass(frozen=True)
class _Part:
    """What a block computes in one forward pass: its modules, and their tensors and options."""

    product: nn.Module | None
    info: SpikeInfo | None
    norm: Norm | None
    pool: str | None
    v0: Tensor | None
    neuron: Options
    constants: kernel.Constants
    seed: Tensor | None
    mask_p: Tensor | None
    record: kernel.Record
    add: Tensor | None = None

    def result(self, y: Tensor, repeats: int) -> Result:
        """Run norm, neuron and pool on the output y of the synaptic layer."""
        mask, backend = (self.seed, self.mask_p), self.neuron.backend
        call = prepare(y, self.v0, self.neuron, self.constants, *mask, repeats, self.record)
        if self.norm is None:
            return kernel.dispatch(backend, call)
        return norm_lif(call, self.norm, self.pool, backend, self.record.state, self.add)

    def recomputed(self, x: Tensor) -> Result:
        """Run the whole block on x; save only x and the learned tensors, and recompute the rest."""
        T = len(x)
        saved = x[:1] if repeats_over_time(x) else x.contiguous() if x.stride(0) == 0 else x

        def run(again: bool, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
            # detached both times: another way of computing the synaptic layer could round otherwise
            tensors = (
                tensors if again else tuple(None if t is None else t.detach() for t in tensors)
            )
            part = self._on(tensors, again)
            result = part.result(
                *apply_once(x.expand(T, *x.shape[1:]), _present(part.product), part.info)
            )
            return result.spikes, result.state, *(result.moments or (None,) * 3), result.active

        spikes, state, *moments, active = checkpoint(run, saved, *self._tensors())
        assert spikes is not None
        assert state is not None
        mean, square, rate = moments
        collected = None
        if mean is not None and square is not None:
            collected = kernel.Moments(mean, square, rate if rate is None else rate.detach())
        return Result(spikes, state, None, collected, active)

    def _tensors(self) -> list[Tensor | None]:
        """Its learned tensors, in the order of `_on`."""
        p = dict(self.product.named_parameters()) if self.product is not None else {}
        affine = (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)
        constants = map(as_tensor, self.constants)
        return [p.get("weight"), p.get("bias"), *affine, self.v0, *constants]

    def _on(self, tensors: Sequence[Tensor | None], again: bool) -> _Part:
        """The same part with other tensors; again=True: do not update running statistics."""
        weight, bias, gamma, beta, v0, *constants = tensors
        product, norm = self.product, self.norm
        if product is not None:
            product = with_parameters(product, {"weight": weight, "bias": bias})
        if norm is not None:
            norm = replace(norm, weight=gamma, bias=beta)
            if again and norm.training:
                norm = replace(norm, running_mean=None, running_var=None)
        learned = {n: t for n, t in zip(self.constants._fields, constants) if t is not None}
        used = self.constants._replace(**learned)
        return replace(self, product=product, norm=norm, v0=v0, constants=used)


def _present(*layers: nn.Module | None) -> Sequence[nn.Module]:
    return [layer for layer in layers if layer is not None]


def why_called(neuron: nn.Module | None) -> str:
    """Why a neuron is called as a module, apart from the rest of its block; "" if it is not."""
    if torch.compiler.is_compiling():
        return "under torch.compile"
    return "" if is_plain(neuron, (LIF, IF, PLIF)) else "it is not LIF, IF or PLIF, or has hooks"


def _may_be_sampled(neuron: LIF, reader: nn.Linear) -> bool:
    """Whether so few spikes may need a gradient that their reader should compute only those."""
    if reader.weight.device.type != "cpu":
        return False  # and reading the mask probability would wait for the device
    mask, _, base = unwrap(neuron.surrogate)
    # fraction of neurons that need a gradient whatever their potential is
    everywhere = float(not _bounded(base))
    if mask is not None and neuron.mask_p is not None:
        p = float(neuron.mask_p)
        replaced = mask.replace is not None and not _bounded(mask.replace)
        everywhere = (1 - p) * everywhere + p * replaced
    at_best = SparsityPlan().decide(
        torch.float32, _MANY, reader.in_features, reader.out_features, None, everywhere
    )
    return torch.is_grad_enabled() and at_best.input != "dense"


def _bounded(surrogate: Surrogate) -> bool:
    return isinstance(surrogate, Family) and surrogate.support < math.inf
