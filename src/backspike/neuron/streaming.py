"""Streaming: within `bs.streaming(model)`, layers carry their state from call to call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Streaming(nn.Module):
    """A layer with a membrane state that `bs.streaming` can carry from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = False
        self.carried: Any = None

    def initial_state(self, v0: Tensor | None, x: Tensor | None) -> Any:
        """v0, or the state carried from the last call, for an input x `[T, B, ...]`."""
        if v0 is not None or not self.streams or self.carried is None:
            return v0
        if x is None:
            return self.carried
        state = self.carried[0] if isinstance(self.carried, tuple) else self.carried
        if list(state.shape[state.dim() - x.dim() + 1 :]) != list(x.shape[1:]):
            raise ValueError(
                f"bs.streaming carries a state of shape {list(state.shape)} and the input has now "
                f"timesteps of shape {list(x.shape[1:])}; begin a new `with bs.streaming(model)`"
            )
        return self.carried

    def _finish(self, state: Tensor) -> None:
        if self.streams:
            self.carried = state.detach()


@contextmanager
def streaming(model: nn.Module) -> Iterator[nn.Module]:
    """Within it, every spiking layer of `model` goes on from where its last call stopped; outside, each call starts at rest.

    The state is carried without its graph, so gradients end where a call began. Each `with` starts from rest.
    """
    outside = [(m, m.streams, m.carried) for m in model.modules() if isinstance(m, Streaming)]
    for layer, _, _ in outside:
        layer.streams, layer.carried = True, None
    try:
        yield model
    finally:
        for layer, streams, carried in outside:
            layer.streams, layer.carried = streams, carried
