"""Timesteps that arrive one by one, without gradients, and their outputs for the gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import networks
from .networks import Library
from .task import Settings, Workload
from .training import rates


class Stream:
    """A network in evaluation mode that carries its state from timestep to timestep."""

    def __init__(
        self, work: Workload, lib: Library, settings: Settings, given: tuple[Tensor, Tensor]
    ) -> None:
        self.work, self.lib = work, lib
        self.x = given[0].to(settings.device)
        self.step = lib.stepper(networks.build(work, lib).to(settings.device).eval())

    @torch.no_grad()
    def iteration(self) -> None:
        for x in self.x:
            self.step(x)

    @torch.no_grad()
    def facts(self) -> dict[str, Any]:
        """The firing rate of each neuron layer."""
        model = networks.build(self.work, self.lib).eval()
        self.lib.reset(model)
        return {"spikes": rates(self.lib, model, lambda: model(self.x))}

    @torch.no_grad()
    def computed(self) -> dict[str, Any]:
        """The spikes of the last layer, if no timestep came before."""
        return {"spikes": torch.stack([self.step(x).clone() for x in self.x]), "gradients": []}
