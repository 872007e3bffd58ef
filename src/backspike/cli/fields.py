"""Recipes on the command line: a shipped name or a JSON file, with fields changed by options."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, UsageError

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe

LARGEST_RECIPE = 1 << 20  # bytes of a JSON file
# what other programs call a field
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_steps": "T",
    "t": "T",
    "time_steps": "T",
    "timesteps": "T",
}


def own_recipe(options: argparse.Namespace, folder: str) -> Recipe | str | None:
    """The argument `recipe=` for a run: the file that the user names, or trusts the run to name.

    Raises UsageError for options that do not fit together, RecipeError and RunError.
    """
    from .. import recipes
    from ..run import Run, source_name

    word = options.recipe
    if options.trust:
        if word:
            raise UsageError("--recipe already names the file to import; leave --trust out")
        source = Run.find(folder).source()
        if source is None:
            raise UsageError(f"{folder} names no Python file; leave --trust out")
        word = source_name(source)
    if word and not recipes.is_file(word):
        raise UsageError(f"--recipe takes a Python file, such as mine.py:recipe; got {word}")
    if not options.accept_change:
        return word
    if not word:
        raise UsageError("--accept-change needs the file: --recipe FILE.py:FUNCTION or --trust")
    return recipes.from_file(word)


def read_recipe(word: str) -> Recipe:
    """The shipped recipe of that name, or the one of a Python file, "mine.py:recipe", or of a JSON
    file written by `Recipe.to_dict`.

    Raises RecipeError.
    """
    from .. import recipes

    if recipes.is_file(word):
        return recipes.from_file(word)
    if word not in recipes.NAMES and os.path.isfile(word):
        return _read_file(Path(word))
    if word.endswith(".json"):
        raise RecipeError(f"there is no file {word}; give a recipe's JSON file or name")
    return recipes.get(word)


def _read_file(path: Path) -> Recipe:
    from ..recipes.recipe import Recipe
    from ..system.files import read_json

    try:
        if path.stat().st_size > LARGEST_RECIPE:
            raise ValueError(f"more than {LARGEST_RECIPE} bytes")
        stored = read_json(path.read_bytes())
        recipe = Recipe.from_dict(stored)
    except (ValueError, OSError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise RecipeError(f"{path} is not a recipe's JSON file: {reason}") from e
    if not isinstance(stored["name"], str):
        raise RecipeError(f"{path}: the name of a recipe must be text, got {stored['name']!r:.80}")
    if stored.get("source"):
        raise RecipeError(
            f"{path} belongs to a run whose recipe is Python code; train that code's file, "
            "as in: backspike train mine.py:recipe"
        )
    if stored.get("own"):
        raise RecipeError(
            f"{path} belongs to a run with your own model or data; train it with bs.fit(...)"
        )
    return recipe


def change_fields(recipe: Recipe, fields: Mapping[str, str]) -> Recipe:
    """The recipe with fields changed, in the given order.

    Raises UsageError for an unknown field, with similar ones, and RecipeError for a wrong value.
    """
    for name, value in fields.items():
        names = list(_field_names(recipe))
        if name not in names:
            raise UsageError(f"--{name} is not a field of the recipe{_similar(name, names)}")
        recipe = recipe.replace({name: value})
    return recipe


def _field_names(owner: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, also of the values in them: "T", "optimizer", "optimizer.lr"."""
    from ..recipes.fields import settings

    for field in settings(owner):
        yield prefix + field.name
        value = getattr(owner, field.name)
        if dataclasses.is_dataclass(value):
            yield from _field_names(value, f"{prefix}{field.name}.")


def _similar(name: str, names: list[str]) -> str:
    """A hint: fields whose last part is equal or similar, or else all fields of the same value."""
    owner, _, last = name.rpartition(".")
    last = OTHER_NAMES.get(last, last)
    by_last: dict[str, list[str]] = {}
    for known in names:
        by_last.setdefault(known.rpartition(".")[2], []).append(known)
    close = [last] if last in by_last else difflib.get_close_matches(last, by_last, cutoff=0.6)
    if found := [f"--{known}" for part in close for known in by_last[part]]:
        return f"; did you mean {' or '.join(found[:3])}?"
    siblings = [f"--{known}" for known in names if known.rpartition(".")[0] == owner]
    if owner and siblings:
        return f"; {owner} has: {', '.join(siblings)}"
    return "; see: backspike train --help"
