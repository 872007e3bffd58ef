"""The model card of a run: `README.md`, Markdown with the front matter that the hub reads.

Everything comes from the files of the runs. What they do not say is called unknown.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import data as data_sets
from ..errors import DataError, ReportError, RunError, option
from ..run import TRAINED
from ..system.files import is_sealed, seal, write_atomic
from .page import TEMPLATES
from .read import load_run
from .results import wilson
from .run_data import RunData, number

if TYPE_CHECKING:
    from jinja2 import Environment

# recipe fields that may differ between runs of the same recipe: they change no result but the seed
FREE = ("seed", "root", "workers", "checkpoint_seconds")
SOFTWARE = ("backspike", "torch", "numpy", "python")


class Score(NamedTuple):
    """The result of one run; accuracies in [0, 1], None if unknown; epoch: "23 of 25"."""

    seed: Any
    test: float | None
    validation: float | None
    epoch: str


class File(NamedTuple):
    name: str
    size: int
    sha256: str


def write(runs: Sequence[Path], out: Path, licence: str | None = None, force: bool = False) -> Path:
    """Writes the card of the first run to `out` and returns its path.

    The other runs, of the same recipe with other seeds, add their accuracies and the spread.
    licence: an identifier of the hub, such as "apache-2.0"; None: unknown. force: replace a file
    that was not written here, or edited since. Raises ReportError.
    """
    loaded = [load_run(run) for run in runs]
    _check(loaded)
    card = seal(render(loaded, _licence(licence)).encode())
    try:
        if out.exists() and not force and not is_sealed(out.read_bytes()):
            raise ReportError(
                f"{out} is not a card as it was written here; move it, "
                f"or replace it with {option('force', True)}"
            )
        write_atomic(out, card)
    except (OSError, RunError) as e:
        raise ReportError(str(e)) from e
    return out


def render(runs: Sequence[RunData], licence: str) -> str:
    """The card of the first run, without its seal."""
    run, scores = runs[0], [_score(run) for run in runs]
    tests = [score.test for score in scores if score.test is not None]
    validations = [score.validation for score in scores]
    known = None not in validations
    samples = int(run.arrays["confusion"].sum()) if "confusion" in run.arrays else 0
    correct = round(samples * (scores[0].test or 0))
    data, network = _data(run), _network(run)
    return (
        _environment()
        .get_template("card.md")
        .render(
            name=run.name,
            licence=licence,
            data=data,
            images=data["kind"] == "images",
            simulated=run.simulated,
            network=network,
            T=run.fields.get("T"),
            readout=run.fields.get("readout"),
            input=_input(run, data["kind"]),
            scores=scores,
            mine=scores[0],
            chosen=known and scores[0].validation == max(v for v in validations if v is not None),
            mean=statistics.fmean(tests) if tests else None,
            spread=statistics.stdev(tests) if len(tests) > 1 else None,
            validated=run.has_validation,
            samples=samples,
            interval=wilson(correct, samples) if samples and tests else None,
            command=run.env.get("command"),
            versions=_versions(run),
            files=[_file(run.path / name) for name in TRAINED],
        )
    )


def _check(runs: Sequence[RunData]) -> None:
    """Raises ReportError unless the runs are finished, and of one recipe with different seeds."""
    for run in runs:
        if not run.done or not (run.path / "model.safetensors").is_file():
            raise ReportError(
                f"{run.path} is not finished; finish it with: backspike resume {run.path}"
            )
        first = {k: v for k, v in runs[0].used_fields.items() if k not in FREE}
        other = {k: v for k, v in run.used_fields.items() if k not in FREE}
        if differing := [k for k in {**first, **other} if first.get(k) != other.get(k)]:
            raise ReportError(
                f"{run.path} has another {differing[0]} than {runs[0].path}; "
                "give runs of one recipe that differ in the seed"
            )
    seeds = [run.fields.get("seed") for run in runs]
    if twice := [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]:
        raise ReportError(f"two of these runs have seed {twice[0]}; give runs with different seeds")


def _licence(licence: str | None) -> str:
    if licence is None:
        return "unknown"
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
        raise ReportError(
            f"licence must be an identifier of the hub such as apache-2.0, got {licence!r}"
        )
    return licence.lower()


def _score(run: RunData) -> Score:
    def share(key: str) -> float | None:
        value = number(run.done.get(key))
        return value if math.isfinite(value) else None

    epochs = len(run.epochs)
    best = run.best_epoch if run.has_validation else epochs
    epoch = f"{best:.0f} of {epochs}"
    return Score(
        run.fields.get("seed"), share("test_accuracy"), share("validation_accuracy"), epoch
    )


def _data(run: RunData) -> dict[str, str]:
    """Name, kind, note and credit of the data set; empty where unknown, or of the user's own."""
    name = "" if "data" in run.own else str(run.fields.get("data", ""))
    try:
        kind = data_sets.source(name).kind
    except DataError:
        kind = ""
    note, credit = (str(run.env.get(f"data_{key}") or "") for key in ("note", "credit"))
    return {"name": name, "kind": kind, "note": note, "credit": credit}


def _network(run: RunData) -> dict[str, str]:
    """Network, neuron and number of parameters; empty where unknown, or of the user's own."""
    parameters = number(run.env.get("parameters"))
    count = f"{parameters:,.0f}" if math.isfinite(parameters) else ""
    if "model" in run.own:
        return {"model": "", "neuron": "", "parameters": count}
    prefix = "neuron."
    options = {k.removeprefix(prefix): v for k, v in run.fields.items() if k.startswith(prefix)}
    kind = str(run.fields.get("neuron", "Neuron()")).removesuffix("()")
    kind = "LIF" if kind == "Neuron" else kind  # as its layers are called
    neuron = f"{kind}({', '.join(f'{k}={v}' for k, v in options.items())})"
    return {"model": str(run.fields.get("model")), "neuron": neuron, "parameters": count}


def _input(run: RunData, kind: str) -> str:
    """The shape of an input and what its numbers are."""
    shape = ""
    if "sample_x" in run.arrays:
        T, *sizes = run.arrays["sample_x"].shape[1:]
        shape = f"[T, B, {', '.join(map(str, sizes))}] with T = {T}: "
    by = run.fields.get("by")
    meaning = {
        "images": "pixel values from 0 to 1, the same image at every timestep",
        "sequences": "pixel values from 0 to 1, a part of the image at each timestep",
        "events": f"numbers of events in T bins of equal {'duration' if by == 'time' else by}",
    }
    return shape + meaning.get(kind, "samples as the data set gives them")


def _versions(run: RunData) -> str:
    software = [f"{name} {run.env[name]}" for name in SOFTWARE if run.env.get(name)]
    return ", ".join(software) + (f"; on {run.env['cpu']}" if run.env.get("cpu") else "")


def _file(path: Path) -> File:
    try:
        content = path.read_bytes()
    except OSError as e:
        raise ReportError(f"{path} cannot be read: {e.strerror}") from e
    return File(path.name, len(content), hashlib.sha256(content).hexdigest())


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": _text, "code": _code, "percent": _percent}
    return environment


def _text(value: object) -> str:
    """One line of Markdown that shows the value as it is."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(str(value).split()))


def _code(value: object) -> str:
    """A code span, also in a table."""
    return "`{}`".format(" ".join(str(value).split()).replace("`", "'").replace("|", r"\|"))


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
