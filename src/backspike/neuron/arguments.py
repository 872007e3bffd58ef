"""A neuron's options as arguments and attributes, read from their dataclass in `options/`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import fields, replace
from inspect import Parameter, signature
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from ..errors import nearest
from ..options import LIF as Options
from ..options.distribution import Distribution
from ..surrogate import Surrogate
from .foreign_names import hint

Kind = TypeVar("Kind", bound=Options)
F = TypeVar("F", bound=Callable[..., Any])
Layer = TypeVar("Layer", bound=type)


# `**rest` of `bs.lif` and of the layers, for type checkers and editors, which cannot see signatures
# made at run time. A test keeps names and types equal to the fields in `options/`.


class FunctionArguments(TypedDict, total=False):
    """What `bs.lif` takes besides the arguments that it names."""

    v_reset: float | None
    decay_input: bool
    surrogate: Surrogate
    reset_gradient: float
    temporal_gradient: bool
    memory: str


class LayerArguments(FunctionArguments, total=False):
    """What `bs.LIF` and its subclasses take besides tau and channels."""

    v_threshold: float | Tensor | Distribution
    learn: tuple[str, ...] | str
    per: str | None
    backend: str


class CubaArguments(LayerArguments, total=False):
    """What `bs.CubaLIF` takes besides tau and channels."""

    tau_synapse: float | Tensor | Distribution


class AdaptiveArguments(LayerArguments, total=False):
    """What `bs.AdaptiveLIF` takes besides tau and channels."""

    tau_adaptation: float
    a: float
    b: float


def options(kind: type[Kind], where: str, **given: Any) -> Kind:
    """The options; TypeError that says what to give instead for one that does not exist."""
    check_names(where, given, {f.name for f in fields(kind)})
    return kind(**given)


def check_names(where: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raises TypeError that says what to give instead of a name that is not known."""
    for name in given:
        if name not in known:
            instead = hint(name) or nearest(name, sorted(known))
            raise TypeError(f"{where} has no argument {name!r}{instead}")


def takes(kind: type[Options], without: Collection[str] = ()) -> Callable[[F], F]:
    """Decorate a function that ends in `**rest`: its signature then shows the fields of `kind`."""

    def decorate(function: F) -> F:
        whole = signature(function)
        *own, _ = whole.parameters.values()
        first = [p for p in own if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
        options = [
            Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in fields(kind)
            if f.name not in without
        ]
        shown = {p.name: p for p in (*first, *options, *own)}
        vars(function)["__signature__"] = whole.replace(parameters=[*shown.values()])
        return function

    return decorate


def has(kind: type[Options], without: Collection[str] = ()) -> Callable[[Layer], Layer]:
    """Decorate a layer whose `options` are of this kind: each field becomes an attribute too."""

    def decorate(layer: Layer) -> Layer:
        takes(kind, without)(layer.__init__)  # type: ignore[misc]
        layer.kind = kind  # type: ignore[attr-defined]
        for f in fields(kind):
            setattr(layer, f.name, _attribute(f.name))
        return layer

    return decorate


def _attribute(name: str) -> property:
    def values(layer: Any) -> Any:
        return vars(layer)["_buffers"].get(f"{name}_values")

    def read(layer: Any) -> Any:
        return getattr(layer.options, name) if values(layer) is None else values(layer)

    def write(layer: Any, value: Any) -> None:
        if values(layer) is not None or isinstance(value, Tensor | Distribution):
            raise AttributeError(
                f"{name} has a value per channel or neuron: change {name}_values in place, or give "
                f"{name}= to a new layer"
            )
        layer.options = replace(layer.options, **{name: value})

    return property(read, write)
