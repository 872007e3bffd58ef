"""What all networks share: how recipes build one, and the factory functions. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

Layer = Callable[..., "nn.Module"]  # makes a layer: neuron(channels=c), norm(channels)


@runtime_checkable
class Model(Protocol):
    """A network as a value, as recipes hold it."""

    def build(self, neuron: Layer, norm: Layer | None = None) -> nn.Module: ...


@dataclass(frozen=True)
class Network:
    """The options that most networks share; inputs are images or event frames of `in_channels`."""

    num_classes: int = 10
    in_channels: int = 3

    def __post_init__(self) -> None:
        check_sizes(self)


def check_sizes(network: Any) -> None:
    """Raises ValueError for a field with a whole number, or a tuple of them, below 1."""
    for field in fields(network):
        value = getattr(network, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and number < 1:
                raise ValueError(f"{field.name} must be at least 1, got {number}")


def factory(network: type[Model], name: str = "") -> Callable[..., nn.Module]:
    """Return a function that builds the network: `vggsnn(10, neuron=f)` is `VGGSNN(10).build(f)`.

    It takes the options of the network, and the keywords `neuron` (default: `bs.LIF`) and `norm`.
    name: its name, if not the lower-case name of the class.
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
