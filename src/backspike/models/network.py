"""What all networks have in common: how a recipe builds one, and the function that is made of each. No torch is imported here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

Layer = Callable[..., "nn.Module"]  # makes one: neuron(channels=c), norm(channels)


@runtime_checkable
class Model(Protocol):
    """A network as a value: what a recipe holds."""

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module: ...


@dataclass(frozen=True)
class Network:
    """The options that most networks share; the input is an image, or event frames, of `in_channels`."""

    num_classes: int = 10
    in_channels: int = 3


def factory(network: type[Model], name: str = "") -> Callable[..., nn.Module]:
    """A function that builds the network: `vggsnn(10, neuron=bs.LIF)` is `VGGSNN(10).build(bs.LIF)`.

    It takes the options of the network, and `neuron` (`bs.LIF` by default) and `norm` by keyword. name: its name, if that is
    not the lower-case name of the class.
    """

    def build(
        *args: Any,
        neuron: Layer | None = None,
        norm: Layer | None = None,
        **options: Any,
    ) -> nn.Module:
        if neuron is None:
            from ..neuron.lif import LIF

            neuron = LIF
        return network(*args, **options).build(neuron, norm)

    own = inspect.signature(build)
    options = inspect.signature(network).parameters.values()
    layers = [own.parameters["neuron"], own.parameters["norm"]]
    vars(build)["__signature__"] = own.replace(parameters=[*options, *layers])
    build.__name__ = build.__qualname__ = name or network.__name__.lower()
    build.__doc__, build.__module__ = network.__doc__, __package__
    return build
