"""Activation checkpointing: recompute a block in backward instead of saving its activations.

Saved are the input of the block, as bits if its values allow it, and the learned tensors. The
output of the synaptic layer, the normalised current and the membrane are recomputed from them by
the same functions under the same autocast settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernel.pack import pack

# (again, x, *tensors) -> outputs. again=True is the recomputation, which must not change buffers or
# draw random numbers.
Run = Callable[..., tuple[Tensor | None, ...]]


def checkpoint(run: Run, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return run(False, x, *tensors), saving only x and the tensors; backward differentiates
    run(True, x, *tensors).

    `run` must take all learned tensors from its arguments, which are detached.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        return _Checkpoint.apply(run, x, *tensors)
    return run(False, x, *tensors)


def with_parameters(layer: nn.Module, parameters: dict[str, Tensor | None]) -> nn.Module:
    """A copy of the layer with other parameters; the layer itself is unchanged.

    The copy has no sparsity plan, so every computation makes the same decisions afresh.
    """
    twin = type(layer).__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin.__dict__.pop("choice", None)
    twin._parameters = parameters  # type: ignore[assignment]
    return twin


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *tensors: Tensor | None) -> Any:
        packed = pack(x)
        ctx.run = run
        ctx.packed = packed if packed.bits else None
        ctx.save_for_backward(None if packed.bits else x, *tensors)
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.set_materialize_grads(False)
        return run(False, x, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; "
                "use create_graph=False"
            )
        x, *tensors = ctx.saved_tensors
        saved = [ctx.packed.unpack() if x is None else x, *tensors]
        needs = ctx.needs_input_grad[1:]
        inputs = [
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(saved, needs)
        ]
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
            outputs = ctx.run(True, *inputs)
        pairs = [
            (o, g)
            for o, g in zip(outputs, grads)
            if g is not None and o is not None and o.requires_grad
        ]
        learned = [t for t in inputs if t is not None and t.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], learned, [g for _, g in pairs], allow_unused=True
            )
        )
        return None, *(next(found) if t is not None and t.requires_grad else None for t in inputs)
