"""`examine`: why does it not learn? Measures the network of a recipe or run on a few batches."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import recipes
from ..analysis.diagnosis import diagnose
from ..analysis.finding import Finding, flag_text, to_flags, to_python
from ..analysis.tally import Layer
from ..analysis.vitals import Vitals, take
from ..errors import RecipeError, RunError
from ..recipes.fields import to_fields
from ..recipes.recipe import Recipe, from_source
from ..run import Run
from ..system.table import Table, left
from ..train import checkpoint
from ..train.failures import first_line, step_errors
from ..train.network import check_own
from ..train.schedule import mask_probability, set_mask_probability
from ..train.setup import Setup, set_up

# the mean gradient over so many samples is judged
SAMPLES = 128
# samples per batch, because the activity of every layer is recorded
AT_ONCE = 32
# optimizer steps: about the span of the running averages of Adam and SGD
STEPS = 10


@dataclass(frozen=True)
class Examination:
    """The result of `examine`; printed, it is the text that `backspike doctor` shows.

    command: how to examine the recipe with all advised changes; "" if there are none.
    """

    subject: str
    recipe: Recipe
    trained: bool
    vitals: Vitals = field(repr=False)
    findings: list[Finding]
    command: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are no findings other than notes."""
        return all(finding.note for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """The former name of `ok`."""
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "subject": self.subject,
            "recipe": self.recipe.to_dict(),
            "trained": self.trained,
            "ok": self.ok,
            "findings": [f.to_dict() for f in self.findings],
            "vitals": self.vitals.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(lines(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"  # for notebooks


def examine(
    run_or_recipe: str | Path | Recipe,
    model: nn.Module | None = None,
    train: Any = None,
    *,
    changes: Mapping[str, Any] | None = None,
    device: str | torch.device | None = None,
    recipe: Recipe | str | None = None,
    values: tuple[Any, ...] = (),
) -> Examination:
    """Examines the network of a recipe before training, or that of a run at its last checkpoint.

    Runs 128 training samples, augmented as in training, forward and backward, then takes ten
    optimizer steps on a copy of the network. Writes no files. Sets torch's global seed.

    Args:
        run_or_recipe: a run folder or a recipe.
        model: your own network instead of the recipe's, as for `fit`.
        train: your own training samples instead of the recipe's, as for `fit`.
        changes: recipe fields to change first, for example those of a finding.
        device: where to compute; by default a GPU if there is one.
        recipe: the recipe of the run, if your own code makes it; as for `bs.load`.
        values: classes and functions of your own that the run's recipe names.

    Raises:
        RunError: the run folder is missing or damaged, or the network does not take the data.
        DataError: the data set is missing or damaged.
        RecipeError: a change is not valid.
    """
    run = state = None
    if isinstance(run_or_recipe, Recipe):
        start = run_or_recipe
        subject = str(start.source or start.name)
    else:
        run = Run.open(run_or_recipe)
        start, subject = run.recipe(values, recipe), str(run_or_recipe)
        check_own(run, model=model, data=train)
        if not run.has("last.ckpt"):
            raise RunError(
                f"{run.path} has no last.ckpt; "
                f"examine its recipe instead: backspike doctor {start.source or start.name}"
            )
        state = checkpoint.read(run, "last.ckpt")
    wanted = start.replace(dict(changes or {}))
    setup = set_up(wanted, model, train, device=device, has_checkpoint=state is not None)
    epoch = step = 0
    if run is not None and state is not None:
        new_optimizer = any(name.startswith("optimizer") for name in changes or ())
        epoch, step = _restore(setup, run, state, new_optimizer)
    own_model, own_data = setup.own_neurons, train is not None
    recipe, model = setup.recipe, setup.network.model
    size = min(AT_ONCE, recipe.part_size)
    with step_errors(f"epoch {epoch + 1}"):
        stream = chain.from_iterable(map(setup.train.training, count(epoch)))
        batches = [(x[:, :size], y[:size]) for x, y in islice(stream, -(-SAMPLES // size))]
        vitals = take(setup.network, setup.optimizer, batches, recipe, setup.train.autocast, STEPS)
    steps = recipe.epochs * len(setup.train)
    findings = diagnose(vitals, model, recipe, steps, trained=step > 0, own_model=own_model)
    advised = {k: v for f in findings if not f.note for k, v in f.changes.items()}
    command = ""
    if own_model and advised:
        command = f"try in Python: {to_python(advised)}"
    elif advised:
        fields = None if own_data else _fields(start, run, wanted, advised)
        command = _command(subject, run, fields, {**(changes or {}), **advised}, own_data)
    return Examination(subject, recipe, step > 0, vitals, findings, command)


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
            "do not change the network of a run"
        ) from e
    epoch, _, step = state["position"]
    epoch = min(epoch, setup.recipe.epochs - 1)
    set_mask_probability(setup.network, mask_probability(setup.recipe, epoch))
    return epoch, step


def _command(
    subject: str,
    run: Run | None,
    fields: Mapping[str, Any] | None,
    changes: Mapping[str, Any],
    own_data: bool,
) -> str:
    """How to examine again with other fields: on the command line, or else in Python."""
    if fields is not None:
        words = ["doctor", subject] if run is None else run.command("doctor")
        return f"try: backspike {shlex.join(words)} {to_flags(fields)}".rstrip()
    first = "recipe" if run is None else repr(subject)
    data = ", train=train" if own_data else ""
    return f"try in Python: bs.examine({first}{data}, changes={dict(changes)!r})"


def _fields(
    start: Recipe, run: Run | None, recipe: Recipe, advised: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The options that make `recipe` with the changes out of what the command line finds under
    the examination's subject; None if it finds nothing, or if a value is a class of the user's own.
    """
    try:
        if start.source is not None:
            start = from_source(start.source) if run is None else start
        else:
            start = recipes.get(start.name) if run is None else run.recipe()
        wanted = recipe.replace(dict(advised))
        before, after = start.to_dict()["fields"], wanted.to_dict()["fields"]
        fields = {"name": wanted.name} if wanted.name != start.name else {}
        for name, value in after.items():
            if before.get(name, ...) != value:
                fields |= _within(start, advised, name, value)
        parsed = start.replace({name: flag_text(value) for name, value in fields.items()})
        return fields if parsed == wanted else None
    except (RecipeError, RunError):
        return None


def _within(start: Recipe, advised: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The advised changes within the field `name` if they suffice for its value, else the field."""
    changes = {n: v for n, v in advised.items() if n.startswith(f"{name}.")}
    try:
        enough = start.replace(changes).to_dict()["fields"].get(name) == value
    except RecipeError:  # the field of `start` is of another class
        enough = False
    return changes if enough else {name: value}


def lines(examination: Examination) -> list[str]:
    """The text for a terminal: a table of the layers, the size of steps, and the findings."""
    v, recipe = examination.vitals, examination.recipe
    state = "trained" if examination.trained else "not trained"
    out = [
        f"{examination.subject} ({state}): {v.samples} samples of {to_fields(recipe)['data']}, "
        f"T = {v.T}, "
        f"cross-entropy {v.cross_entropy:.3g}, accuracy {100 * v.accuracy:.1f} %",
    ]
    if v.layers:
        out.append(Table(_COLUMNS, [_row(*item) for item in v.layers.items()]).to_text())
    if v.weights:
        ratios = [w.update_ratio for w in v.weights.values()]
        out.append(
            "relative weight update of a step at the full learning rate: "
            f"{min(ratios):.2g} to {max(ratios):.2g}"
        )
    problems = [f for f in examination.findings if not f.note]
    out.append(f"problems: {len(problems)}" if problems else "OK: no problem found")
    for finding in examination.findings:
        out.append(f"{'note' if finding.note else 'problem'}: {finding}")
    if examination.command:
        out.append(examination.command)
    return out


_COLUMNS = left(
    "layer", "fires", "within surrogate", "gradient", "reset", "mask leaves", "dead channels"
)


def _row(name: str, layer: Layer) -> tuple[str, ...]:
    def mean(values: Sequence[float] | None) -> str:
        return "-" if not values else f"{sum(values) / len(values):.2g}"

    return (
        name,
        f"{100 * layer.rate:.1f} %",
        f"{100 * layer.support:.1f} %",
        f"{layer.gradient_norm:.1e}",
        mean(layer.reset_ratio),
        mean(layer.mask_left),
        f"{100 * layer.dead:.0f} %",
    )
