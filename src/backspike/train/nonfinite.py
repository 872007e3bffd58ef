"""Where a NaN or an infinity comes from: asked once a loss or a gradient is not finite, and the run ends anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


def origin(model: nn.Module, x: Tensor) -> str:
    """In words, the first thing that is not finite: weights, then what a layer gives for x `[T, B, ...]`, then gradients.

    x: the finite input of the step that went wrong, whose gradients are still there. A membrane of NaN does not spike and so
    looks finite from outside; the layer before it tells, or the gradient. The model runs once more.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"{name} held {_share(parameter)} before the step"
    if (layer := _first_layer(model, x)) is not None:
        return f"the output of {layer} has it from finite weights and inputs"
    for name, parameter in reversed(
        list(model.named_parameters())
    ):  # backwards, as the gradient goes
        if parameter.grad is not None and not _finite(parameter.grad):
            return (
                f"all outputs are finite, and the gradient of {name} holds {_share(parameter.grad)}"
            )
    return "all weights, outputs of layers and gradients are finite, the loss alone is not"


@torch.no_grad()
def _first_layer(model: nn.Module, x: Tensor) -> str | None:
    """The first layer, in the order in which they run, whose output is not finite: "features.0 (Conv2d)"."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def see(module: nn.Module, _inputs: Any, output: Any) -> None:
        if not found and module in names and isinstance(output, Tensor) and not _finite(output):
            found.append(f"{names[module] or 'the model'} ({type(module).__name__})")

    hook = register_module_forward_hook(
        see
    )  # on all modules: none then runs joined with its neighbours
    try:
        model(x)
    finally:
        hook.remove()
    return found[0] if found else None


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _share(x: Tensor) -> str:
    """ "NaN in 3 of 40 values", infinity counted beside it."""
    bad = int((~torch.isfinite(x)).sum())
    return f"{'NaN' if bool(x.isnan().any()) else 'infinity'} in {bad:,} of {x.numel():,} values"
