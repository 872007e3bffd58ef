"""What `env.json` says of where a run was trained."""

from __future__ import annotations

import sys
from pathlib import Path

from ..recipes.recipe import Recipe
from ..system import distributed


def command(recipe: Recipe, own: list[str]) -> str:
    """What repeats the run: the command line that was given, or the call of `fit` with the recipe written out."""
    if Path(sys.argv[0]).stem in ("backspike", "__main__"):
        return distributed.command(*sys.argv[1:])
    given = {"model": "model=...", "data": "train=..., test=..."}
    return ", ".join([f"bs.fit({recipe!r}", "out", *(given[o] for o in own)]) + ")"
