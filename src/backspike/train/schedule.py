"""Parameter groups, and what changes from epoch to epoch besides the learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..layers.delay import Delay
from ..neuron.hooks import spiking_layers
from ..neuron.lif import neuron_parameters
from ..recipes.recipe import Recipe
from ..recipes.values import Neuron
from .network import Network


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights, and neuron parameters with 0.1 x learning rate and no weight decay.

    An optimizer may divide these two groups further.
    """
    own = neuron_parameters(model)
    ids = {id(p) for p in own}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": weights, "lr_scale": 1.0}]
    if own:
        groups.append({"params": own, "lr_scale": 0.1, "weight_decay": 0.0})
    return recipe.optimizer.groups(model, groups)


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


def anneal_delays(network: Network | None, recipe: Recipe, epoch: int) -> None:
    """Sets the width of the Gaussians of every `bs.Delay` in the network."""
    for layer in () if network is None else network.modules():
        if isinstance(layer, Delay):
            layer.anneal(epoch / recipe.epochs)


@torch.no_grad()
def update_average(averaged: Network, network: Network, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * network; integers are copied."""
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values()))
    numbers = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)
