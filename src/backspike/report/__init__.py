"""Reports: from run folders to one HTML page that needs nothing else, neither a network nor a script.

Everything shown is made from the run folder alone; what an interrupted run lacks is left out, and said.
"""

from __future__ import annotations

from pathlib import Path

from ..system.table import Table, left
from .activity import energy_section, firing, membranes, potentials, support, watch, widths
from .compare import compare
from .page import Page, Part, Section, Text, bold, code, write_page
from .read import load_run
from .results import confusion, curves, early_exit, notices, over_time, readout, subtitle, tiles
from .run_data import RunData
from .samples import samples

__all__ = ["compare", "write"]


def _recipe(run: RunData) -> Section:
    rows = [[code(key), code(value)] for key, value in run.fields.items()]
    text: Text = [
        "Every choice of the recipe ",
        bold(run.name),
        "; the command line sets each as ",
        code("--field value"),
        ".",
    ]
    return Section("recipe", "Recipe", text, [Table(left("field", "value"), rows, "Recipe")])


def _environment(run: RunData) -> Section:
    env = dict(run.env)
    command = env.pop("command", None)
    rows = [[key.replace("_", " "), str(value)] for key, value in env.items()]
    text = "Where the numbers come from" + (
        ", and the command that repeats them." if command else "."
    )
    table = Table(left("", ""), rows, "Environment", style="pairs headless")
    body = [Part("command", str(command))] * bool(command) + [table] * bool(rows)
    return Section("environment", "Environment", text, body)


_GLOSSARY = {
    "timestep": "A network sees its input several times, or a recording in several slices; at each a neuron spikes or not.",
    "membrane": "A neuron's state before its reset: it leaks, adds the input, and spikes on reaching the threshold.",
    "surrogate derivative": (
        "A spike is a step, whose derivative is zero or infinite. Training uses a bump around the threshold in its place; "
        "where the bump is zero, no gradient passes."
    ),
    "masked surrogate gradient": (
        "In the backward pass a random share of the surrogate derivatives is set to zero, afresh in every step; the forward "
        "pass is untouched."
    ),
    "firing rate": "Spikes divided by neurons, timesteps and samples.",
    "validation": "Samples kept from training that choose the best epoch. The test samples choose nothing.",
    "loss": "What training makes small: the cross-entropy of the answer, in nats, unless the recipe says otherwise.",
}


def _glossary(run: RunData) -> Section:
    return Section("terms", "Terms", "As they are meant on this page.", [Part("terms", _GLOSSARY)])


_SECTIONS = (
    *(curves, readout, over_time, early_exit, confusion, firing, energy_section, membranes),
    *(potentials, support, widths, watch, samples, _recipe, _environment, _glossary),
)


def write(run: Path, out: Path | None = None) -> Path:
    """Writes the report of a run to `out` (default: `run/report.html`) and returns its path.

    Raises ReportError.
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
