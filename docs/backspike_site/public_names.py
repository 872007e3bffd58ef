"""The public names: those of `backspike`, and those of the modules among them."""

import inspect
from types import ModuleType
from typing import Any

import backspike as bs


def public_names() -> dict[str, Any]:
    """Every public function, class and value by its name below `backspike`, such as "loss.tet"."""
    found = {}
    for name in bs.__all__:
        value = getattr(bs, name)
        if isinstance(value, ModuleType):
            found |= {f"{name}.{inner}": getattr(value, inner) for inner in _inner(value)}
        else:
            found[name] = value
    return found


def _inner(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__") or "__dir__" in vars(module):
        return sorted(getattr(module, "__all__", dir(module)))
    own = [
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]
    return sorted(own)
