"""Checks the types of a recipe's fields, also of the values in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import RecipeError
from .source import text


def check_types(owner: Any, path: str = "") -> None:
    """Checks the declared types of all fields, also of the values in them. Raises RecipeError."""
    types = hints(type(owner))  # type: ignore[arg-type]
    for f in dataclasses.fields(owner):
        value, hint = getattr(owner, f.name), types.get(f.name, object)
        if not fits(value, hint):
            raise RecipeError(f"{path}{f.name} must be {describe(hint)}, got {text(value)}")
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                check_types(part, f"{path}{f.name}.")


@cache
def hints(owner: Any) -> dict[str, Any]:
    """The declared types of a dataclass, by field; {} if they cannot be resolved."""
    try:
        return get_type_hints(owner)
    except (NameError, TypeError):  # a user's class with hints that cannot be resolved
        return {}


def is_text(hint: Any) -> bool:
    """Whether a text in a field of this type may stand for itself."""
    return hint is str or (get_origin(hint) is not tuple and str in get_args(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has a declared type."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(v, get_args(hint)[0]) for v in value)
    if alternatives := get_args(hint):
        return any(fits(value, a) for a in alternatives)
    if hint is Callable:
        return callable(value) and not dataclasses.is_dataclass(value)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) and not isinstance(value, type)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    type(None): "None",
    Callable: "a function of your own",
}

EXAMPLES = {
    "Distribution": "Gamma(mean=20.0, shape=3.0)",
    "Surrogate": "Triangle(alpha=2.0)",
    "Model": "ConvNet('32-P-64-P')",
    "Norm": "TDBN()",
    "Neuron": "PLIF(tau=2.0)",
    "Readout": "TWO(beta=0.7)",
    "Loss": "CrossEntropy()",
    "Optimizer": "AdamW(lr=0.001)",
    "Augment": "Shift(1)",
    "Mixing": "CutMix()",
}


def describe(hint: Any) -> str:
    """A declared type in words: "a whole number", "a value such as TDBN() or None"."""
    if get_origin(hint) is tuple:
        return f"a tuple of {describe(get_args(hint)[0])}"
    if args := get_args(hint):
        return " or ".join(describe(a) for a in args)
    if hint in _WORDS:
        return _WORDS[hint]
    return f"a value such as {EXAMPLES.get(hint.__name__, hint.__name__)}"
