"""Reports: from run folders to one HTML page that needs nothing else, neither a network nor a script.

Everything shown is made from the run folder alone; what an interrupted run lacks is left out, and said. Strings of a run reach
the page only through `escape` and never reach matplotlib: it draws axes, lines and numbers. Figures are inline
SVG whose colours are CSS variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

from pathlib import Path

from .activity import energy_section, firing, membranes, potentials, support, watch, widths
from .compare import compare
from .html import Section, escape, html_table, render_page, write_page
from .read import RunData, load_run
from .results import confusion, curves, early_exit, headline, notices, over_time, readout, subtitle
from .samples import samples

__all__ = ["compare", "write"]


def _recipe(run: RunData) -> Section:
    rows = [
        [f"<code>{escape(key)}</code>", f"<code>{escape(value)}</code>"]
        for key, value in run.fields.items()
    ]
    text = f"Every choice of the recipe <b>{escape(run.name)}</b>; the command line sets each as <code>--field value</code>."
    return Section(
        "recipe", "Recipe", text, html_table(["field", "value"], rows, "Recipe", "pairs")
    )


def _environment(run: RunData) -> Section:
    rows = [
        [escape(key.replace("_", " ")), escape(value)]
        for key, value in run.env.items()
        if key != "command"
    ]
    command = (
        f'<pre tabindex="0"><code>{escape(run.env["command"])}</code></pre>'
        if run.env.get("command")
        else ""
    )
    table = html_table(["", ""], rows, "Environment", "pairs headless") if rows else ""
    text = "Where the numbers come from" + (
        ", and the command that repeats them." if command else "."
    )
    return Section("environment", "Environment", text, command + table)


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
    items = "".join(
        f"<div><dt>{term}</dt><dd>{text}</dd></div>" for term, text in _GLOSSARY.items()
    )
    return Section(
        "terms", "Terms", "As they are meant on this page.", f'<dl class="terms">{items}</dl>'
    )


_SECTIONS = (
    *(
        curves,
        readout,
        over_time,
        early_exit,
        confusion,
        firing,
        energy_section,
        membranes,
        potentials,
        support,
        widths,
    ),
    watch,
    *(samples, _recipe, _environment, _glossary),
)


# Pages


def write(run: Path) -> Path:
    """Writes `report.html` into a run folder and returns its path. Raises `ReportError`."""
    loaded = load_run(run)
    sections = [section for make in _SECTIONS if (section := make(loaded)).body]
    links = "".join(f'<a href="#{section.name}">{section.title}</a>' for section in sections)
    head = f"<header><p>backspike · training report</p><h1>{escape(loaded.name)}</h1>{subtitle(loaded)}{notices(loaded)}"
    body = f"{head}{headline(loaded)}<nav aria-label='Sections'>{links}</nav></header>"
    page = render_page(
        f"{loaded.name} · backspike report", body + "".join(section.html() for section in sections)
    )
    return write_page(Path(run) / "report.html", page)
