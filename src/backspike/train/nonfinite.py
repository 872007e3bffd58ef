"""Where a NaN or an infinity comes from, once a loss or gradient is not finite and the run ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


def origin(model: nn.Module, x: Tensor) -> str:
    """Describes what is not finite: a weight, else the output of a layer, else a gradient.

    x: the finite input `[T, B, ...]` of the failed step, whose gradients are still there. A
    membrane of NaN does not spike and so looks finite from outside; the layer before it or the
    gradient shows the NaN. Runs the model once more.
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
    """The first layer to run whose output is not finite: "features.0 (Conv2d)"."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def check(module: nn.Module, _inputs: Any, output: Any) -> None:
        if not found and module in names and isinstance(output, Tensor) and not _finite(output):
            found.append(f"{names[module] or 'the model'} ({type(module).__name__})")

    hook = register_module_forward_hook(
        check
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
