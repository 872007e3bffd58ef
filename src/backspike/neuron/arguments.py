"""A neuron's options as arguments and attributes, read off their dataclass in `options.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from inspect import Parameter, signature
from typing import Any, TypeVar

from ..options import LIF as Options

F = TypeVar("F", bound=Callable[..., Any])
Layer = TypeVar("Layer", bound=type)


def takes(kind: type[Options], without: Collection[str] = ()) -> Callable[[F], F]:
    """For a function that ends in `**rest`: signature and help show the fields of `kind` there."""

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
        setattr(function, "__signature__", whole.replace(parameters=[*shown.values()]))  # noqa: B010
        return function

    return decorate


def has(kind: type[Options], without: Collection[str] = ()) -> Callable[[Layer], Layer]:
    """For a layer with `options` of this kind: each field is an attribute and an argument."""

    def decorate(layer: Layer) -> Layer:
        takes(kind, without)(layer.__init__)  # type: ignore[misc]
        layer.kind = kind  # type: ignore[attr-defined]
        for f in fields(kind):
            setattr(layer, f.name, _attribute(f.name))
        return layer

    return decorate


def _attribute(name: str) -> property:
    def write(layer: Any, value: Any) -> None:
        layer.options = replace(layer.options, **{name: value})

    return property(lambda layer: getattr(layer.options, name), write)
