"""Computing a block again for its backward pass instead of keeping what it computed.

Of a block the input is kept, as bits where its values allow it, and the tensors that the block learns; the product, the
normalised current and the membrane are computed once more from them, by the same functions under the same autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernel.pack import pack

# (again, x, *tensors) -> outputs; again: the second time, in which nothing outside may change and nothing be drawn
Run = Callable[..., tuple[Tensor | None, ...]]


def checkpoint(run: Run, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """run(False, x, *tensors), of which only x and the tensors are kept; for backward run(True, x, *tensors) is differentiated.

    What learns in `run` must come from the tensors that it is given: they are copies without a graph.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors)):
        return _Checkpoint.apply(run, x, *tensors)
    return run(False, x, *tensors)


def with_parameters(layer: nn.Module, parameters: dict[str, Tensor | None]) -> nn.Module:
    """The same layer on other parameters; the layer itself stays as it is.

    It has no choice of products: that is made anew, and so in the same way, each time that something is computed.
    """
    twin = type(layer).__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin.__dict__.pop("choice", None)
    twin._parameters = parameters  # type: ignore[assignment]
    return twin


class _Checkpoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, x: Tensor, *tensors: Tensor | None) -> Any:
        kept = pack(x)
        ctx.run, ctx.packed = run, kept if kept.bits else None
        ctx.save_for_backward(None if kept.bits else x, *tensors)
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.set_materialize_grads(False)
        return run(False, x, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backspike: double backward through a spiking layer is not defined; use create_graph=False"
            )
        x, *tensors = ctx.saved_tensors
        given = [ctx.packed.unpack() if x is None else x, *tensors]
        needs = ctx.needs_input_grad[1:]
        given = [
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(given, needs)
        ]
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype, enabled):
            outputs = ctx.run(True, *given)
        known = [
            (o, g)
            for o, g in zip(outputs, grads)
            if g is not None and o is not None and o.requires_grad
        ]
        wanted = [t for t in given if t is not None and t.requires_grad]
        found = iter(
            torch.autograd.grad(
                [o for o, _ in known], wanted, [g for _, g in known], allow_unused=True
            )
        )
        return None, *(next(found) if t is not None and t.requires_grad else None for t in given)
