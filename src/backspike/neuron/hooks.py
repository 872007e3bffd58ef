"""Watching what the neurons of a model do: `with bs.record(model) as layers:` gives each layer's last output.

Everything that hooks into a model is a `Handle`: `remove()` undoes it, and so does the end of a `with`. Any number of watchers
may look at the same layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from .lif import LIF, Output, Watcher

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle:
    """Something hooked into a model until `remove()` or the end of a `with`."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], object]] = []

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def watch(layer: LIF, watcher: Watcher) -> Callable[[], None]:
    """Lets `watcher` see every output of the layer; returns what ends it."""
    layer.watchers.append(watcher)
    return lambda: layer.watchers.remove(watcher)


def spiking_layers(model: nn.Module) -> dict[str, LIF]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LIF)}


@contextmanager
def observe(model: nn.Module, see: Callable[[str, LIF, Output], None]) -> Iterator[None]:
    """Within it, `see(name, layer, output)` is called at every forward pass of a spiking layer, membrane included."""

    def watcher(name: str) -> Watcher:
        return Watcher(lambda layer, out, _moments: see(name, layer, out), membrane=True)

    with Handle() as handle:
        for name, layer in spiking_layers(model).items():
            handle.undo.append(watch(layer, watcher(name)))
        yield


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, Output]]:
    """Within it, every forward pass leaves the `Output` of each spiking layer, membrane included, under the layer's name."""
    outputs: dict[str, Output] = {}
    with observe(model, lambda name, _layer, out: outputs.__setitem__(name, out)):
        yield outputs
