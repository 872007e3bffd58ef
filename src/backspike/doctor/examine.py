"""`examine`: why does it not learn? Measures a recipe's or a run's network on a few batches."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..analysis.diagnosis import Finding, diagnose
from ..analysis.vitals import Vitals, take
from ..errors import RunError
from ..recipes.recipe import Recipe
from ..run import Run
from ..system.table import Table, left
from ..train import checkpoint
from ..train.failures import first_line, step_errors
from ..train.schedule import mask_probability, set_mask_probability
from ..train.setup import Setup, check_own, set_up

SAMPLES = 128  # whose mean gradient is judged
AT_ONCE = 32  # in a batch, as the activity of every layer is recorded
STEPS = 10  # of the optimizer: about as many as the averages of Adam and SGD span


@dataclass(frozen=True)
class Examination:
    """The result of `examine`."""

    subject: str
    recipe: Recipe
    trained: bool
    vitals: Vitals = field(repr=False)
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        """Nothing but notes."""
        return all(finding.note for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        about = {
            "subject": self.subject,
            "recipe": self.recipe.to_dict(),
            "trained": self.trained,
            "healthy": self.healthy,
        }
        return {
            **about,
            "findings": [f.to_dict() for f in self.findings],
            "vitals": self.vitals.to_dict(),
        }


def examine(
    run_or_recipe: str | Path | Recipe,
    model: nn.Module | None = None,
    train: Any = None,
    *,
    changes: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    values: tuple[type, ...] = (),
) -> Examination:
    """Examines a recipe's network before training, or a run's network at its last checkpoint.

    Runs 128 training samples, augmented as in training, forward and backward, then takes ten steps
    on a copy. Writes nothing. model, train: your own instead of the recipe's, as for `fit`.
    changes: fields of the recipe to set first, such as those of a finding. Sets torch's global
    seed. Raises RunError, DataError or RecipeError.
    """
    run = state = None
    if isinstance(run_or_recipe, Recipe):
        recipe, subject = run_or_recipe, run_or_recipe.name
    else:
        run = Run.open(run_or_recipe)
        recipe, subject = run.recipe(values), str(run_or_recipe)
        check_own(run, model=model, data=train)
        if not run.has("last.ckpt"):
            raise RunError(
                f"{run.path} has no last.ckpt; "
                f"examine its recipe instead: backspike doctor {recipe.name}"
            )
        state = checkpoint.read(run, "last.ckpt")
    setup = set_up(recipe.replace(dict(changes or {})), model, train, device=device)
    epoch = step = 0
    if run is not None and state is not None:
        new_optimizer = any(name.startswith("optimizer") for name in changes or ())
        epoch, step = _restore(setup, run, state, new_optimizer)
    recipe, model = setup.recipe, setup.network.model
    size = min(AT_ONCE, recipe.part_size)
    with step_errors(f"epoch {epoch}"):
        stream = chain.from_iterable(map(setup.train.training, count(epoch)))
        batches = [(x[:, :size], y[:size]) for x, y in islice(stream, -(-SAMPLES // size))]
        vitals = take(setup.network, setup.optimizer, batches, recipe, setup.train.autocast, STEPS)
    findings = diagnose(vitals, model, recipe, recipe.epochs * len(setup.train), trained=step > 0)
    return Examination(subject, recipe, step > 0, vitals, findings)


def _restore(
    setup: Setup, run: Run, state: Mapping[str, Any], new_optimizer: bool
) -> tuple[int, int]:
    """Loads weights and optimizer of a checkpoint; returns its epoch and number of steps."""
    try:
        setup.network.load_state_dict(state["network"])
        if not new_optimizer:
            checkpoint.load_optimizer(setup.optimizer, state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as e:
        raise RunError(
            f"the weights of {run.path} do not fit this network ({first_line(e)}); "
            "leave out what changes it"
        ) from e
    epoch, _, step = state["position"]
    epoch = min(epoch, setup.recipe.epochs - 1)
    set_mask_probability(setup.network, mask_probability(setup.recipe, epoch))
    return epoch, step


def lines(examination: Examination) -> list[str]:
    """For a terminal: a table of the layers, how far steps go, and the findings."""
    v, recipe = examination.vitals, examination.recipe
    state = "trained" if examination.trained else "not trained"
    table = Table(_COLUMNS, [_row(name, layer) for name, layer in v.layers.items()])
    out = [
        f"{examination.subject} ({state}): {v.samples} samples of {recipe.data}, T = {v.T}, "
        f"cross-entropy {v.cross_entropy:.3g}, accuracy {100 * v.accuracy:.1f} %",
        table.to_text(),
    ]
    if v.weights:
        ratios = [w.update_ratio for w in v.weights.values()]
        out.append(
            "a step at the full learning rate changes weights by "
            f"{min(ratios):.2g} to {max(ratios):.2g} of their size"
        )
    ill = [f for f in examination.findings if not f.note]
    out.append(f"findings: {len(ill)}" if ill else "healthy: nothing found")
    for finding in examination.findings:
        out.append(f"{'note' if finding.note else 'finding'}: {finding}")
    if any(f.changes for f in ill):
        out.append(f"try: {_again(examination, ill)}")
    return out


_COLUMNS = left(
    *("layer", "fires", "under surrogate", "gradient", "reset", "mask leaves", "dead channels")
)


def _row(name: str, layer: Any) -> tuple[str, ...]:
    def mean(values: Sequence[float] | None) -> str:
        return "-" if not values else f"{sum(values) / len(values):.2g}"

    shares = (
        f"{100 * layer.rate:.1f} %",
        f"{100 * layer.support:.1f} %",
        f"{layer.gradient_norm:.1e}",
    )
    return (
        name,
        *shares,
        mean(layer.reset_ratio),
        mean(layer.mask_left),
        f"{100 * layer.dead:.0f} %",
    )


def _again(examination: Examination, ill: Sequence[Finding]) -> str:
    """The command that examines the recipe with all changes at once."""
    changes = {k: v for finding in ill for k, v in finding.changes.items()}
    flags = Finding("", [], "", "", changes).flags
    return f"backspike doctor {shlex.quote(examination.subject)} {flags}"
