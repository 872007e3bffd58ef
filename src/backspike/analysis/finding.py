"""What the doctor finds: `Finding`, the case that it examines, and how changes are written."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..neuron.hooks import spiking_layers
from ..neuron.lif import LIF
from ..recipes.recipe import Recipe
from ..recipes.values import Neuron
from ..surrogate import Masked, Parametric, Surrogate, Triangle
from .activity import in_support
from .tally import Layer
from .vitals import Vitals, Weight

DRAW_WEIGHTS = "draw the weights with bs.init.fluctuation_driven(model, sample)"


@dataclass(frozen=True)
class Finding:
    """A problem that keeps a network from learning or, if `note` is set, something worth knowing.

    changes: recipe fields to try with `recipe.replace(finding.changes)`; empty if the problem has
        to be solved elsewhere.
    own_model: the network is the user's, so its neurons have to be changed in Python.
    """

    problem: str
    # names of layers or tensors; [] for the whole network
    where: list[str]
    found: str
    advice: str
    changes: dict[str, Any] = field(default_factory=dict)
    note: bool = False
    own_model: bool = False

    @property
    def illness(self) -> str:
        """The former name of `problem`."""
        return self.problem

    @property
    def flags(self) -> str:
        """The changes as command-line options."""
        return to_flags(self.changes)

    @property
    def instructions(self) -> str:
        """The changes as command-line options or, for an own model, as Python; "" without any."""
        return to_python(self.changes) if self.own_model else self.flags

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a log."""
        plain = dataclasses.asdict(self)
        del plain["own_model"]
        changes = {name: flag_text(value) for name, value in self.changes.items()}
        return {**plain, "changes": changes, "flags": self.instructions}

    def __str__(self) -> str:
        places = f"{list_names(self.where)}: " if self.where else ""
        instructions = f": {self.instructions}" if self.changes else ""
        return f"{self.problem}: {places}{self.found}; {self.advice}{instructions}"


def to_flags(changes: Mapping[str, Any]) -> str:
    """Recipe fields as command-line options."""
    return " ".join(f"--{name} {shlex.quote(flag_text(value))}" for name, value in changes.items())


def to_python(changes: Mapping[str, Any]) -> str:
    """Recipe fields as Python for a model of the user's own: neuron options, other fields."""
    neuron = [
        f"{name.removeprefix('neuron.')}={value!r}"
        for name, value in changes.items()
        if name.startswith("neuron.")
    ]
    others = {name: value for name, value in changes.items() if not name.startswith("neuron.")}
    parts = [f"bs.LIF(..., {', '.join(neuron)})"] if neuron else []
    parts += [f"recipe.replace({others!r})"] if others else []
    return " and ".join(parts)


@dataclass(frozen=True)
class Case:
    vitals: Vitals
    model: nn.Module
    recipe: Recipe
    steps: int
    trained: bool
    own_model: bool

    @property
    def layers(self) -> list[tuple[str, Layer, LIF]]:
        spiking = spiking_layers(self.model)
        return [(name, layer, spiking[name]) for name, layer in self.vitals.layers.items()]

    @property
    def weights(self) -> list[tuple[str, Weight]]:
        return list(self.vitals.weights.items())

    def attributed(self, findings: list[Finding]) -> list[Finding]:
        return [dataclasses.replace(f, own_model=self.own_model) for f in findings]

    def change_surrogate(
        self, neuron: LIF, changed: Surrogate, path: str, value: Any
    ) -> dict[str, Any]:
        """The field of the recipe's surrogate, or the whole surrogate if the neuron has another."""
        named = self.recipe.neuron
        if self.own_model or not isinstance(named, Neuron) or named.surrogate != neuron.surrogate:
            return {"neuron.surrogate": changed}
        return {f"neuron.surrogate{path}": value}


# ---- the surrogate of a neuron ---------------------------------------------------------------


def reach(neuron: LIF) -> float:
    """The distance from the threshold within which the derivative exceeds 1 % of its peak."""
    z = torch.logspace(-5, 5, 4001)[:, None, None]
    width = neuron.constants()[2]
    if width is not None and width.dim():
        z = z.expand(-1, 1, len(width))
    inside = in_support(neuron, z).flatten(1).any(1)
    return float(z[inside].max()) if bool(inside.any()) else 1e-5


def base_of(surrogate: Surrogate) -> tuple[str, Surrogate]:
    """The surrogate inside masks and learned widths, with the path that leads to it."""
    path = ""
    while isinstance(surrogate, Masked | Parametric):
        path, surrogate = f"{path}.base", surrogate.base
    return path, surrogate


def with_base(surrogate: Surrogate, base: Surrogate) -> Surrogate:
    """The surrogate with another one inside its masks and learned widths."""
    if isinstance(surrogate, Masked | Parametric):
        return dataclasses.replace(surrogate, base=with_base(surrogate.base, base))
    return base


def changed_base(case: Case, neuron: LIF, name: str, value: float) -> dict[str, Any]:
    """A change of one field of the neuron's innermost surrogate."""
    path, base = base_of(neuron.surrogate)
    new: Any = dataclasses.replace(base, **{name: value})  # type: ignore[type-var]
    whole = with_base(neuron.surrogate, new)
    return case.change_surrogate(neuron, whole, f"{path}.{name}", value)


def widened(case: Case, neuron: LIF, factor: float) -> dict[str, Any]:
    """The surrogate `factor` times as wide; a triangle if its width cannot be set."""
    path, base = base_of(neuron.surrogate)
    width, alpha = (getattr(base, name, None) for name in ("width", "alpha"))
    if isinstance(width, float | int):
        return changed_base(case, neuron, "width", tidy(width * factor))
    if isinstance(alpha, float | int):
        return changed_base(case, neuron, "alpha", tidy(alpha / factor))
    triangle = Triangle(alpha=tidy(1 / (reach(neuron) * factor)))
    return case.change_surrogate(neuron, with_base(neuron.surrogate, triangle), path, triangle)


# ---- numbers as text -------------------------------------------------------------------------


def tidy(value: float) -> float:
    """Rounds to two significant digits, enough for advice."""
    return float(f"{value:.2g}") if math.isfinite(value) else value


def flag_text(value: Any) -> str:
    """A value as text that the command line parses."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def times(ratio: float) -> str:
    return f"{ratio:.2g} times" if math.isfinite(ratio) else "many times"


def list_names(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"
