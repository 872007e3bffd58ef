"""Streaming: inside `bs.streaming(model)`, layers carry their state from call to call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .foreign_names import hint


class Streaming(nn.Module):
    """A layer with a membrane state that `bs.streaming` can carry from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = False
        self.detaches = True
        self.carried: Any = None

    if not TYPE_CHECKING:  # checkers would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError as e:
                raise AttributeError(f"{e}{hint(name)}") from None

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

    def carry(self, *state: Tensor) -> None:
        """Keep the state for the next call, if streaming."""
        if self.streams:
            kept = tuple(s.detach() for s in state) if self.detaches else state
            self.carried = kept if len(kept) > 1 else kept[0]


@contextmanager
def streaming(model: nn.Module, *, detach: bool = True) -> Iterator[nn.Module]:
    """Context in which each spiking layer of `model` continues from the state of its last call.

    Outside it every call starts from rest, and so does every new `with` block. The carried state is
    detached, so gradients do not flow from one call into an earlier one; with detach=False they do,
    and calls on the parts of a sequence have the gradients of one call on the whole.
    Raises ValueError if the shape of a timestep changes within one block.
    """
    layers = [m for m in model.modules() if isinstance(m, Streaming)]
    outside = [(m, m.streams, m.detaches, m.carried) for m in layers]
    for layer in layers:
        layer.streams, layer.detaches, layer.carried = True, detach, None
    try:
        yield model
    finally:
        for layer, streams, detaches, carried in outside:
            layer.streams, layer.detaches, layer.carried = streams, detaches, carried
