"""Values as text and back: a parser for the repr of a value, with a whitelist and without eval."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from ..data import augment as _augment
from ..data import autoaugment as _autoaugment
from ..data import mixing as _mixing
from ..errors import RecipeError, nearest
from ..models import NETWORKS
from ..options import distribution
from ..surrogate import FAMILIES, Masked, Parametric
from . import values


def _defined_in(module: ModuleType) -> list[Any]:
    classes = (c for c in vars(module).values() if is_dataclass(c))
    return [c for c in classes if getattr(c, "__module__", "") == module.__name__]


VALUES: dict[str, Callable[..., Any]] = {
    c.__name__: c
    for c in (
        *(*FAMILIES, Masked, Parametric, *distribution.FAMILIES),
        *(*NETWORKS, *_defined_in(values)),
        *(*_defined_in(_augment), *_defined_in(_autoaugment), *_defined_in(_mixing)),
    )
} | {"LIF": values.Neuron, "ms": distribution.ms}


def parse(
    text: str, extra: Mapping[str, Callable[..., Any]] | None = None, where: str = "value"
) -> Any:
    """Reads a value: a number, True, False, None, a quoted string, a tuple, or a whitelisted class.

    extra: further classes and functions, by name; functions stand for themselves and are not
    called. where: the field, which begins every error message.
    Raises RecipeError, with similar names for an unknown one.
    """
    if len(text) > 10_000:
        raise RecipeError(f"{where}: too long for a value ({len(text)} characters)")
    try:
        return _evaluate(ast.parse(text.strip(), mode="eval").body, VALUES | dict(extra or {}))
    except (SyntaxError, MemoryError, RecursionError):
        raise RecipeError(
            f"{where}: cannot read {text[:80]!r}; "
            "expected a number, or a value such as Triangle(alpha=2)"
        ) from None
    except RecipeError as e:
        raise RecipeError(f"{where}: {e}") from None
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{where}: {e}") from None


def options_in(text: str, kind: type) -> set[str]:
    """Names of the options that the text of a value of this dataclass sets: "LIF(3, learn=())"."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call):
        return set()
    by_position = [f.name for f in fields(kind)][: len(call.args)]
    return {*by_position, *(str(k.arg) for k in call.keywords)}


def _evaluate(node: ast.expr, names: dict[str, Callable[..., Any]]) -> Any:
    match node:
        case ast.Constant(value=value) if value is None or isinstance(
            value, bool | int | float | str
        ):
            if isinstance(value, int) and value >= 1 << 63:
                raise RecipeError("an integer with more than 64 bits")
            return value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_evaluate(i, names) for i in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, names)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id=name) if name in names and not is_dataclass(names[name]):
            return names[name]
        case ast.Name(id=name) if name in names:
            raise RecipeError(f"{name} needs brackets: {name}()")
        case ast.Name(id=name):
            raise RecipeError(f"unknown name {name}{nearest(name, names)}")
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if (
            name in names and all(k.arg for k in keywords)
        ):
            if not isinstance(names[name], type):
                raise RecipeError(f"{name} is a function; leave its brackets out")
            options = {str(k.arg): _evaluate(k.value, names) for k in keywords}
            return names[name](*(_evaluate(a, names) for a in args), **options)
        case ast.Call(func=ast.Name(id=name)) if name not in names:
            raise RecipeError(f"unknown name {name}{nearest(name, names)}")
    raise RecipeError(
        "only numbers, strings, tuples and values such as Triangle(alpha=2) are allowed"
    )
