"""A training iteration of a network or a single neuron layer, and its results for the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from . import networks
from .networks import Library
from .task import Settings, Workload

LEARNING_RATE = 1e-12  # so small that the densities do not change


class Network:
    """A classifier whose logits are the mean over time of its outputs `[T, B, K]`."""

    def __init__(
        self, work: Workload, lib: Library, settings: Settings, given: tuple[Tensor, Tensor]
    ) -> None:
        self.work, self.lib, self.settings = work, lib, settings
        self.x, self.y = (t.to(settings.device) for t in given)
        self.model = networks.build(work, lib).to(settings.device)
        if settings.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if self.x.dim() >= 4:
                self.x = _channels_last(self.x)
        self.optimizer = torch.optim.SGD(networks.weights(self.model), lr=LEARNING_RATE)
        recording: Any = lib  # only ours can record an iteration
        self.iteration = recording.recorded(self._iteration) if settings.graph else self._iteration

    def _iteration(self) -> None:
        self.optimizer.zero_grad()
        self._loss().backward()
        self.optimizer.step()

    def _loss(self) -> Tensor:
        self.lib.reset(self.model)
        x = self.lib.repeat(self.x, self.work.T) if self.work.static else self.x
        with torch.autocast(self.settings.device, torch.bfloat16, enabled=self.settings.bfloat16):
            outputs = self.model(x)
        return cross_entropy(outputs.float().mean(0), self.y)

    def facts(self) -> dict[str, Any]:
        """The firing rate of each neuron layer."""
        with torch.no_grad():
            return {"spikes": rates(self.lib, self.model, self._loss)}

    def computed(self) -> dict[str, Any]:
        """Loss and gradients before any optimizer step."""
        self.optimizer.zero_grad()
        loss = self._loss()
        loss.backward()
        gradients = [None if p.grad is None else p.grad.cpu() for p in networks.weights(self.model)]
        return {"loss": loss.detach().cpu(), "gradients": gradients}


class Layer:
    """A single neuron layer on `[T, N]`, with a given gradient of the spikes."""

    def __init__(
        self, work: Workload, lib: Library, settings: Settings, given: tuple[Tensor, Tensor]
    ) -> None:
        self.lib = lib
        x, self.g = ((t.bfloat16() if settings.bfloat16 else t).to(settings.device) for t in given)
        self.x = x.requires_grad_()
        self.model: nn.Module = lib.finish(lib.chain(lib.neuron(None))).to(settings.device)

    def iteration(self) -> None:
        self.x.grad = None
        self._spikes()

    def _spikes(self) -> Tensor:
        self.lib.reset(self.model)
        spikes = self.model(self.x)
        spikes.backward(self.g.to(spikes.dtype))
        return spikes

    def facts(self) -> dict[str, Any]:
        with torch.no_grad():
            self.lib.reset(self.model)
            return {"spikes": [self.model(self.x).float().mean().item()]}

    def computed(self) -> dict[str, Any]:
        self.x.grad = None
        spikes = self._spikes().detach().cpu()
        assert self.x.grad is not None
        return {"spikes": spikes, "gradients": [self.x.grad.cpu()]}


def rates(lib: Library, model: nn.Module, run: Callable[[], object]) -> list[float]:
    """The firing rate of each neuron layer of a model that `run` calls."""
    shares: list[float] = []
    kinds = type(lib.neuron(None)), type(lib.recurrent(1, None))
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    inside = {part for m in layers for part in m.modules() if part is not m}
    hooks = [
        m.register_forward_hook(lambda m, i, o: shares.append(o.detach().float().mean().item()))
        for m in layers
        if m not in inside
    ]
    run()
    for hook in hooks:
        hook.remove()
    return shares


def _channels_last(x: Tensor) -> Tensor:
    """x `[..., C, H, W]` in channels-last memory layout."""
    folded = x.reshape(-1, *x.shape[-3:]).contiguous(memory_format=torch.channels_last)
    return folded.view(x.shape)
