"""Parameter groups, learning rates on the device, and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..neuron.lif import neuron_parameters
from ..recipes.recipe import Recipe
from .network import Network


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights; and what neurons learn in a group of its own, at a tenth of the learning rate and without weight decay."""
    own = neuron_parameters(model)
    ids = {id(p) for p in own}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": weights, "lr_scale": 1.0}]
    if own:
        groups.append({"params": own, "lr_scale": 0.1, "weight_decay": 0.0})
    return groups


def rate_on_device(group: dict[str, Any], device: torch.device) -> Tensor:
    """The learning rate of a group of parameters as a tensor, so that a recorded step reads what it is now."""
    if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = True
    return group["lr"]


@torch.no_grad()
def update_average(averaged: Network, network: Network, decay: float) -> None:
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values()))
    numbers = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
