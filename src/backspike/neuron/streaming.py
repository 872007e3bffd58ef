"""Streaming: inside `bs.streaming(model)`, layers carry their state from call to call."""

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
        """v0 if given, else the state carried over from the last call; x is `[T, B, ...]`."""
        if v0 is not None or not self.streams or self.carried is None:
            return v0
        if x is None:
            return self.carried
        state = self.carried[0] if isinstance(self.carried, tuple) else self.carried
        if list(state.shape[state.dim() - x.dim() + 1 :]) != list(x.shape[1:]):
            raise ValueError(
                f"bs.streaming carries a state of shape {list(state.shape)}, but one timestep of "
                f"this input has shape {list(x.shape[1:])}; start a new `with bs.streaming(model)`"
            )
        return self.carried

    def _finish(self, state: Tensor) -> None:
        if self.streams:
            self.carried = state.detach()


@contextmanager
def streaming(model: nn.Module) -> Iterator[nn.Module]:
    """Context in which each spiking layer of `model` continues from the state of its last call.

    Outside it every call starts from rest, and so does every new `with` block. The carried state is
    detached, so gradients do not flow from one call into an earlier one.
    Raises ValueError if the shape of a timestep changes within one block.
    """
    outside = [(m, m.streams, m.carried) for m in model.modules() if isinstance(m, Streaming)]
    for layer, _, _ in outside:
        layer.streams, layer.carried = True, None
    try:
        yield model
    finally:
        for layer, streams, carried in outside:
            layer.streams, layer.carried = streams, carried
