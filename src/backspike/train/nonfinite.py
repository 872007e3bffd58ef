"""Finds the origin of a NaN or an infinity when it has ended a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


def origin(model: nn.Module, x: Tensor) -> str:
    """Describes what is not finite: a weight, else the output of a layer, else a gradient.

    x: the finite input `[T, B, ...]` of the failed step, whose gradients still exist. Runs the
    model once more.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"{name} contained {_share(parameter)} before the step"
    if (layer := _first_layer(model, x)) is not None:
        return f"the output of {layer} is not finite, although its weights and inputs are"
    # backwards, in the direction of the gradient
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _finite(parameter.grad):
            share = _share(parameter.grad)
            return f"all outputs are finite, but the gradient of {name} contains {share}"
    return "all weights, outputs of layers and gradients are finite; only the loss is not"


@torch.no_grad()
def _first_layer(model: nn.Module, x: Tensor) -> str | None:
    """The first layer whose output is not finite, such as "features.0 (Conv2d)"."""
    names = {module: name for name, module in model.named_modules()}
    found: list[str] = []

    def check(module: nn.Module, _inputs: Any, output: Any) -> None:
        if not found and module in names and isinstance(output, Tensor) and not _finite(output):
            found.append(f"{names[module] or 'the model'} ({type(module).__name__})")

    # a hook on all modules, so that no layers are fused
    hook = register_module_forward_hook(check)
    try:
        model(x)
    finally:
        hook.remove()
    return found[0] if found else None


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(x).all())


def _share(x: Tensor) -> str:
    """The text "NaN in 3 of 40 values"; infinity is counted too."""
    bad = int((~torch.isfinite(x)).sum())
    return f"{'NaN' if bool(x.isnan().any()) else 'infinity'} in {bad:,} of {x.numel():,} values"
