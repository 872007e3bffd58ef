"""Observe the neurons of a model: `with bs.record(model) as outputs:` collects their outputs.

Everything that hooks into a model is a `Handle`; `remove()` or leaving the `with` block undoes it.
A layer can have any number of watchers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules import module as _module

from .lif import LIF, Output, Watcher

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle:
    """A change to a model that lasts until `remove()` or the end of a `with` block."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], object]] = []

    def remove(self) -> None:
        while self.undo:
            self.undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def on_call(
    modules: Mapping[str, nn.Module], see: Callable[[str, tuple[Any, ...], Any], None]
) -> Handle:
    """Call `see(name, inputs, output)` after each forward of these modules, of any kind."""

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, inputs, output: see(name, inputs, output)

    handle = Handle()
    handle.undo += [m.register_forward_hook(hook(name)).remove for name, m in modules.items()]
    return handle


def watch(layer: LIF, watcher: Watcher) -> Callable[[], None]:
    """Call `watcher` with every output of the layer; returns a function that stops it."""
    layer.watchers.append(watcher)
    return lambda: layer.watchers.remove(watcher)


def spiking_layers(model: nn.Module) -> dict[str, LIF]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LIF)}


@contextmanager
def observe(model: nn.Module, see: Callable[[str, LIF, Output], None]) -> Iterator[None]:
    """Context: call `see(name, layer, output)`, membrane included, after each spiking layer ran."""

    def watcher(name: str) -> Watcher:
        return Watcher(lambda layer, out, _moments: see(name, layer, out), membrane=True)

    with Handle() as handle:
        for name, layer in spiking_layers(model).items():
            handle.undo.append(watch(layer, watcher(name)))
        yield


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, Output]]:
    """Context that collects the latest `bs.Output` of each spiking layer under the layer's name.

    The membrane potentials are recorded as well.

        with bs.record(model) as outputs:
            model(x)
        outputs["1"].spikes  # [T, B, ...]
    """
    outputs: dict[str, Output] = {}
    with observe(model, lambda name, _layer, out: outputs.__setitem__(name, out)):
        yield outputs


def has_hooks(m: nn.Module) -> bool:
    """Whether calling m may run more than its class's forward: hooks, or a forward of its own."""
    return bool(
        m._forward_hooks
        or m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
        or "forward" in m.__dict__
    )
