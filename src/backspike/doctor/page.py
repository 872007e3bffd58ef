"""The page of an examination: findings and charts, made from the parts of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.finding import Finding
from ..analysis.vitals import Vitals
from ..recipes.fields import to_fields
from ..report.chart import Line, colour, draw_chart, ramp
from ..report.format import as_percent, three_digits
from ..report.page import Page, Section, Text, bold, code, grid, heat_table
from ..system.files import write_atomic
from ..system.table import Table, left, right
from .examine import Examination


def write(examination: Examination, path: Path) -> Path:
    """Writes the page and returns its path. Raises RunError if it cannot be written."""
    v, recipe = examination.vitals, examination.recipe
    state = "after training" if examination.trained else "before training"
    fields = to_fields(recipe)
    parts: list[Any] = [code(fields["model"])]
    if "neuron.surrogate" in fields:
        parts += [" · ", code(fields["neuron.surrogate"])]
    page = Page(
        kind="doctor",
        title=f"{examination.subject} · backspike doctor",
        heading=examination.subject,
        sections=[_findings(examination.findings), _layers(v), _gradients(v), _weights(v)],
        lead=[*parts, " on ", bold(fields["data"]), f", {state}"],
        tiles=_tiles(v, [f for f in examination.findings if not f.note]),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.html())
    return path


def _tiles(v: Vitals, problems: Sequence[Finding]) -> list[tuple[str, str, str]]:
    found = "keep the network from learning" if problems else "no problem found"
    chance = f"random answers: {math.log(v.classes):.3g}"
    return [
        ("Problems", f"{len(problems)}" if problems else "none", found),
        ("Cross-entropy", f"{v.cross_entropy:.3g}", chance),
        ("Accuracy", as_percent(v.accuracy), f"of {v.samples} training samples"),
        ("Timesteps", f"{v.T}", f"{len(v.layers)} spiking layers"),
    ]


def _findings(findings: Sequence[Finding]) -> Section:
    text = (
        "The first cause comes first. Once a stage has a problem, later stages are not checked. "
        "Try a change by examining or training with it."
    )
    rows = [
        [f.problem + " (note)" * f.note, ", ".join(f.where) or "the network", f.found, _advice(f)]
        for f in findings
    ]
    table = Table(left("finding", "where", "what", "to try"), rows, "Findings")
    return Section("findings", "Findings", text, [table] if rows else [])


def _advice(finding: Finding) -> Text:
    if not finding.changes:
        return finding.advice
    return [f"{finding.advice}: ", code(finding.instructions)]


def _layers(v: Vitals) -> Section:
    text = (
        "Per layer and timestep, in percent: how many neurons fire, and how many membrane "
        "potentials lie within the surrogate, where gradients pass."
    )
    layers = v.layers.values()
    shares = {
        "Firing rate, % at step": [layer.firing_rate for layer in layers],
        "Within the surrogate, % at step": [layer.support_share for layer in layers],
    }
    tables = [
        heat_table(list(v.layers), values, Table(left(label), (), label))
        for label, values in shares.items()
        if values
    ]
    return Section("layers", "Spikes and potentials", text, tables)


def _gradients(v: Vitals) -> Section:
    def over_steps(values: Iterable[tuple[str, list[float] | None]]) -> list[Line]:
        known = [(name, series) for name, series in values if series]
        return [
            Line(name, _positions(len(series)), np.array(series, float), ramp(i, len(known)))
            for i, (name, series) in enumerate(known)
        ]

    items = v.layers.items()
    depth = np.array([layer.gradient_norm for layer in v.layers.values()])
    line = Line("gradient", _positions(len(depth)), depth, colour("train"))
    time = over_steps((name, layer.gradient) for name, layer in items)
    reset = over_steps((name, layer.reset_ratio) for name, layer in items)
    mask = over_steps((name, layer.mask_left) for name, layer in items)
    charts = grid(
        draw_chart("depth", "Gradient of each layer", [line], "layer, from the input", log=True),
        draw_chart("time", "Gradient at each timestep", time, "timestep", log=True),
        draw_chart("reset", "Through the reset, relative to the rest", reset, "timestep"),
        draw_chart("mask", "Left by the mask", mask, "timestep", True),
    )
    text = (
        "The norm of the loss gradient at the input currents, over all samples and neurons. If it "
        "falls by powers of ten from right to left, it does not reach the first layers; if it "
        "rises, it explodes. The effects of the reset and of the mask are measured by computing "
        "the gradient again without them."
    )
    return Section("gradients", "Gradients through depth and time", text, charts)


def _positions(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype=float)


def _weights(v: Vitals) -> Section:
    rows = [
        [
            name,
            w.norm,
            w.gradient,
            w.update_ratio,
            math.nan if w.mask_alignment is None else w.mask_alignment,
        ]
        for name, w in v.weights.items()
    ]
    text = (
        "Step: how far one step at the recipe's full learning rate moves the weights, relative to "
        "their size; 0.001 to 0.1 is common. Agreement: the cosine similarity of the gradients "
        "with and without the mask."
    )
    heads = right("norm", "gradient", "step", "agreement", format=three_digits)
    table = Table([*left("weights"), *heads], rows, "Weights")
    return Section("weights", "Steps", text, [table] if rows else [])
