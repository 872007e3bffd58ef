"""`env.json`: the machine, the versions and the command of a run."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from ..errors import on_command_line
from ..recipes.fields import settings, to_fields
from ..recipes.recipe import from_source
from ..recipes.source import text
from ..system import distributed
from ..system.machine import processor_name
from ..version import __version__
from .setup import Setup, replaced_fields


def environment(setup: Setup) -> dict[str, Any]:
    on_gpu = setup.device.type == "cuda"
    return {
        "backspike": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "ranks": setup.ranks.size,
        "device": torch.cuda.get_device_name(setup.device) if on_gpu else "cpu",
        "command": _command(setup),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data_note": setup.sets.note,
        "data_credit": setup.sets.credit,
        "parameters": sum(p.numel() for p in setup.network.parameters()),
        **{f"{name}_because": why for name, why in setup.reasons.items()},
    }


def _command(setup: Setup) -> str:
    """Reproduces the run: the command line, or the call of `fit` with the recipe written out."""
    if on_command_line():
        return distributed.command(*sys.argv[1:])
    arguments = {"model": "model=...", "data": _own_data(setup), "scheduler": "scheduler=..."}
    own = [arguments[name] for name in setup.own]
    return f"bs.fit({', '.join([_recipe(setup), 'out', *own])})"


def _recipe(setup: Setup) -> str:
    """The recipe as Python makes it: the call of its file's function, or all its fields."""
    recipe = setup.recipe
    if recipe.source is not None:
        start, now = to_fields(from_source(recipe.source)), to_fields(recipe)
        changes = {name: value for name, value in now.items() if start.get(name, ...) != value}
        made = f"bs.recipes.from_file({str(recipe.source)!r})"
        return f"{made}.replace({changes!r})" if changes else made
    names = [f.name for f in settings(recipe)]
    unused = {*recipe.unused, *(n for what in setup.own for n in replaced_fields(names, what))}
    used = [f"{name}={text(getattr(recipe, name))}" for name in names if name not in unused]
    return f"bs.Recipe({', '.join(used)})"


def _own_data(setup: Setup) -> str:
    sets = {"train": setup.train, "validation": setup.validation, "test": setup.test}
    return ", ".join(f"{name}=..." for name, data in sets.items() if data is not None)
