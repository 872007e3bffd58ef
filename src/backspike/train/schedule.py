"""Schedules: learning rate, mask probability, moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron.hooks import spiking_layers
from ..neuron.lif import neuron_parameters
from ..recipes.recipe import Recipe
from ..recipes.values import Neuron
from .network import Network


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Two groups: weights, and neuron parameters with 0.1 x learning rate and no weight decay."""
    own = neuron_parameters(model)
    ids = {id(p) for p in own}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": weights, "lr_scale": 1.0}]
    if own:
        groups.append({"params": own, "lr_scale": 0.1, "weight_decay": 0.0})
    return groups


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """The learning rate of step number `step`, with `per_epoch` steps in an epoch."""
    peak = recipe.optimizer.lr
    warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, rate: float, device: torch.device | None
) -> None:
    """Scales the rate for each group. On a device it is a tensor, as a recorded step needs."""
    for group in optimizer.param_groups:
        scaled = rate * group["lr_scale"]
        if device is None:  # optimizers round a number and a tensor differently
            group["lr"] = scaled
        else:
            _rate_on_device(group, device).fill_(scaled)


def _rate_on_device(group: dict[str, Any], device: torch.device) -> Tensor:
    if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = True
    return group["lr"]


def mask_probability(recipe: Recipe, epoch: int) -> float | None:
    """Linear from the surrogate's own p to `mask_p_end`; None if it does not change."""
    end = recipe.mask_p_end
    if end is None or not isinstance(recipe.neuron, Neuron) or recipe.neuron.mask is None:
        return None
    start = recipe.neuron.mask.p
    return start + (end - start) * epoch / max(recipe.epochs - 1, 1)


def set_mask_probability(network: Network | None, p: float | None) -> None:
    """Sets the mask probability of all spiking layers; does nothing for None."""
    if network is None or p is None:
        return
    for layer in spiking_layers(network).values():
        assert layer.mask_p is not None
        layer.mask_p.fill_(p)


@torch.no_grad()
def update_average(averaged: Network, network: Network, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network; integers are copied."""
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values()))
    numbers = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
