"""The fields of a recipe as text and back, and changes of single fields by their dotted names."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from ..errors import RecipeError, nearest
from ..options import Own
from ..options.distribution import Distribution, ms
from .source import text as repr_text
from .text import VALUES, options_in, parse
from .types import describe, fits, hints, is_text
from .values import Neuron

if TYPE_CHECKING:
    from .recipe import Recipe

logger = logging.getLogger("backspike")


def settings(recipe: Recipe) -> list[dataclasses.Field[Any]]:
    """The fields that a user sets: all but `source`."""
    return [f for f in dataclasses.fields(recipe) if f.name != "source"]


def with_stored(recipe: Recipe, stored: Mapping[str, Any], own: Mapping[str, Any]) -> Recipe:
    """The recipe with fields as JSON holds them."""
    if unknown := [k for k in stored if "." in k and not k.startswith("neuron.")]:
        raise RecipeError(f"not a field of a recipe: {unknown[0]}")
    neuron = {k.split(".", 1)[1]: v for k, v in stored.items() if "." in k}
    fields = _values(recipe, {k: v for k, v in stored.items() if "." not in k}, own)
    kind = fields.pop("neuron", recipe.neuron)
    if neuron:
        kind = dataclasses.replace(kind, **_values(kind, neuron, own))
    return dataclasses.replace(recipe, neuron=kind, **fields)


def _values(owner: Any, stored: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an owner's fields from what JSON holds. Raises RecipeError."""
    types: dict[str, Any] = hints(type(owner))  # type: ignore[arg-type]
    values = {}
    for name, value in stored.items():
        _known(owner, name, name)
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str):
            value = _from_text(value, types.get(name), own, name)
        values[name] = value
    return values


def _from_text(text: str, hint: Any, own: Mapping[str, Any], where: str) -> Any:
    """The value that a text stands for: itself, or what the parser reads in it."""
    if is_text(hint) and Callable in get_args(hint):
        return own.get(text, text)
    if hint is str or (is_text(hint) and not text.strip().endswith(")")):
        return text
    return parse(text, own, where)


def to_fields(recipe: Recipe) -> dict[str, Any]:
    """All fields with an effect, by dotted name, as JSON can hold them."""
    out: dict[str, Any] = {}
    unused = recipe.unused
    for f in settings(recipe):
        if f.name in unused:
            continue
        value = getattr(recipe, f.name)
        if isinstance(value, Neuron):
            out[f.name] = f"{type(value).__name__}()"
            out |= {
                f"{f.name}.{g.name}": _text(getattr(value, g.name))
                for g in dataclasses.fields(value)
            }
        else:
            out[f.name] = _text(value)
    return out


def _text(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return repr(value)
    plain = value is None or (
        isinstance(value, str | bool | int | float) and not isinstance(value, ms)
    )
    return value if plain else repr_text(value)


def _known(owner: Any, name: str, path: str) -> None:
    if not dataclasses.is_dataclass(owner):
        raise RecipeError(f"{path}: {owner!r} has no fields")
    names = [f.name for f in dataclasses.fields(owner)]
    if name not in names:
        kind = type(owner).__name__
        raise RecipeError(f"{path}: no field of {kind} has this name{nearest(name, names)}")


def with_field(owner: Any, path: list[str], value: Any, whole: str, own: Mapping[str, Any]) -> Any:
    """The owner with one field changed, also within its values; a string is parsed.

    path: the names of the field; whole: the same for messages. own: names that the text may use.
    Raises RecipeError.
    """
    _known(owner, path[0], whole)
    old = getattr(owner, path[0])
    hint = hints(type(owner)).get(path[0])  # type: ignore[arg-type]
    if len(path) > 1:
        new = with_field(old, path[1:], value, whole, own)
    elif not isinstance(value, str):
        new = value
    elif is_text(hint):
        new = _from_text(value, hint, own, whole)
    elif isinstance(old, Neuron):
        new = _other_neuron(old, value, whole, own)
    else:
        try:
            new = parse(value, own, whole)
        except RecipeError:
            simple = {int, float, bool, type(None)} | (
                {Distribution} if "(" not in value else set()
            )
            if simple >= {*(get_args(hint) or (hint,))}:
                raise RecipeError(f"{whole} must be {describe(hint)}, got {value!r}") from None
            if hint == tuple[str, ...]:
                raise RecipeError(
                    f"{whole} must be a tuple of strings such as ('threshold',), got {value!r}"
                ) from None
            raise
    try:
        return dataclasses.replace(owner, **{path[0]: new})
    except RecipeError:
        raise
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{whole}: {e}") from None


def _other_neuron(old: Neuron, text: str, path: str, own: Mapping[str, Any]) -> Any:
    """The neuron in `text`, with the options of `old` that the text does not set."""
    text = text.strip()
    named = dataclasses.is_dataclass(VALUES.get(text, own.get(text)))
    new = parse(f"{text}()" if named else text, own, path)
    if not isinstance(new, Neuron):  # a function of the user's own, or the recipe refuses it
        return new
    kind, set_in_text = type(new), options_in(text, type(new))
    types: dict[str, Any] = hints(kind)  # type: ignore[arg-type]
    # constants of equations of one's own, of the same name or not, mean something else
    differ = type(old) is not kind and (isinstance(old, Own) or issubclass(kind, Own))
    shared = {f.name for f in dataclasses.fields(Own)} if differ else {*types}
    kept, lost = {}, []
    for f in dataclasses.fields(old):
        value = getattr(old, f.name)
        if f.name in set_in_text:
            continue
        if f.name in shared and f.name in types and fits(value, types[f.name]):
            kept[f.name] = value
        else:
            lost.append(f"{f.name}={value!r}")
    if lost:
        name = "LIF" if kind is Neuron else kind.__name__
        logger.warning("%s: %s cannot keep %s", path, name, ", ".join(lost))
    return dataclasses.replace(new, **kept)
