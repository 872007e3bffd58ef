"""Reports: one self-contained HTML page per run, without scripts or network access.

Everything comes from the run folder alone. The page of an interrupted run leaves out what is
missing and says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..system.table import Table, left
from .activity import (
    constants,
    energy_section,
    firing,
    membranes,
    potentials,
    support,
    watch,
    widths,
)
from .compare import compare
from .page import Page, Part, Section, bold, code, write_page
from .read import load_run
from .results import confusion, curves, early_exit, notices, over_time, readout, subtitle, tiles
from .run_data import RunData
from .samples import samples

__all__ = ["compare", "write"]


def _recipe(run: RunData) -> Section:
    rows = [
        [code(key), value if key in run.own else code(value)]
        for key, value in run.used_fields.items()
    ]
    text: list[Any] = [
        "All fields of the recipe ",
        bold(run.name),
        *[", without those that your own ", " and ".join(run.own), " replaced"] * bool(run.own),
        ". To change one, pass ",
        code("--field value"),
        " on the command line.",
    ]
    body: list[Any] = [Table(left("field", "value"), rows, "Recipe")]
    if run.file:
        sha256 = str(run.source.get("sha256"))
        text += [f" A function of the user's made it, {run.file} (SHA-256 {sha256}):"]
        body.append(Part("command", str(run.source.get("text"))))
    return Section("recipe", "Recipe", text, body)


def _environment(run: RunData) -> Section:
    env = dict(run.env)
    command = env.pop("command", None)
    rows = [[key.replace("_", " "), str(value)] for key, value in env.items()]
    text = "Software and hardware of this run" + (
        ", and the command that reproduces it." if command else "."
    )
    table = Table(left("", ""), rows, "Environment", style="pairs headless")
    body = [Part("command", str(command))] * bool(command) + [table] * bool(rows)
    return Section("environment", "Environment", text, body)


_GLOSSARY = {
    "timestep": (
        "The network sees an image several times, or a recording in several slices. In each of "
        "these timesteps a neuron either spikes or does not."
    ),
    "membrane potential": (
        "A neuron's state before its reset. It leaks, integrates the input, and the neuron spikes "
        "when it reaches the threshold."
    ),
    "surrogate derivative": (
        "A spike is a step function, whose derivative is zero or infinite. Training replaces it "
        "by a bump around the threshold. Where the bump is zero, no gradient flows."
    ),
    "masked surrogate gradient": (
        "In each backward pass a random share of the surrogate derivatives is set to zero. The "
        "forward pass does not change."
    ),
    "firing rate": "Number of spikes divided by neurons, timesteps and samples.",
    "validation": (
        "Samples held out from training to choose the best epoch. The test set plays no part in "
        "any choice."
    ),
    "loss": (
        "The quantity that training minimises: the cross-entropy of the prediction, in nats, "
        "unless the recipe says otherwise."
    ),
}


def _glossary(run: RunData) -> Section:
    return Section("terms", "Terms", "How this page uses them.", [Part("terms", _GLOSSARY)])


_SECTIONS = (
    *(curves, readout, over_time, early_exit, confusion, firing, energy_section, membranes),
    *(potentials, support, widths, constants, watch, samples, _recipe, _environment, _glossary),
)


def write(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run to `out` (default: `run/report.html`) and returns its path.

    Raises ReportError, with a one-line message, if the folder is missing, damaged or not writable.
    """
    loaded = load_run(run)
    page = Page(
        kind="training report",
        title=f"{loaded.name} · backspike report",
        heading=loaded.name,
        sections=[make(loaded) for make in _SECTIONS],
        lead=subtitle(loaded),
        notices=notices(loaded),
        tiles=tiles(loaded),
        contents=True,
    )
    return write_page(out or Path(run) / "report.html", page)
