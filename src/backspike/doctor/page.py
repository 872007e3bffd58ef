"""The page of an examination: its findings, and pictures of what was measured, made with the parts of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..analysis.diagnosis import Finding
from ..analysis.vitals import Vitals
from ..report import chart, html
from ..system.files import write_atomic
from .examine import Examination

_e = html.escape


def write(examination: Examination, path: Path) -> Path:
    """Writes the page and returns its path. Raises RunError where it cannot be written."""
    v, recipe = examination.vitals, examination.recipe
    state = "as training left it" if examination.trained else "before training"
    ill = [f for f in examination.findings if not f.note]
    tiles = html.tile_row([
        ("Findings", f"{len(ill)}" if ill else "none", "what keeps it from learning" if ill else "nothing stands in its way"),
        ("Cross-entropy", f"{v.cross_entropy:.3g}", f"answers at random: {math.log(v.classes):.3g}"),
        ("Accuracy", html.as_percent(v.accuracy), f"of {v.samples} training samples"),
        ("Timesteps", f"{v.T}", f"{len(v.layers)} spiking layers"),
    ])  # fmt: skip
    head = (
        f"<header><p>backspike · doctor</p><h1>{_e(examination.subject)}</h1>"
        f'<p class="lead"><code>{_e(recipe.model)}</code> · <code>{_e(recipe.neuron.surrogate)}</code> on '
        f"<b>{_e(recipe.data)}</b>, {state}</p>{tiles}</header>"
    )
    sections = [_findings(examination.findings), _layers(v), _gradients(v), _weights(v)]
    body = head + "".join(section.html() for section in sections if section.body)
    page = html.render_page(f"{examination.subject} · backspike doctor", body)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def _findings(findings: Sequence[Finding]) -> html.Section:
    text = (
        "The first cause first: what comes later on the way of the signal is judged once what comes before is well. Each "
        "change is one to try; examine again with it, or train with it."
    )
    rows = [
        [
            _e(f.illness) + (" (note)" if f.note else ""),
            _e(", ".join(f.where) or "the network"),
            _e(f.found),
            _e(f.advice) + (f": <code>{_e(f.flags)}</code>" if f.changes else ""),
        ]
        for f in findings
    ]
    table = (
        html.html_table(["finding", "where", "what", "to try"], rows, "Findings", "pairs")
        if rows
        else ""
    )
    return html.Section("findings", "Findings", text, table)


def _layers(v: Vitals) -> html.Section:
    text = (
        "Of each layer, in percent and step by step: how many neurons fire, and how many potentials lie under the surrogate, "
        "where a gradient passes."
    )
    rates = _heat(
        "Firing rate, % at step", {name: layer.firing_rate for name, layer in v.layers.items()}
    )
    support = _heat(
        "Under the surrogate, % at step",
        {name: layer.support_share for name, layer in v.layers.items()},
    )
    return html.Section("layers", "Spikes and potentials", text, rates + support)


def _heat(label: str, values: dict[str, list[float]]) -> str:
    if not values:
        return ""
    groups = html.time_groups(max(map(len, values.values())), html.MAX_STEPS)
    rows = []
    for name, of in values.items():
        means = [
            float(np.mean([of[t] for t in group if t < len(of)] or [math.nan])) for group in groups
        ]
        rows.append(
            [_e(name), *(html.heat_cell(np.nan_to_num(m), html.tenths(100 * m)) for m in means)]
        )
    return html.html_table([label, *html.group_names(groups)], rows, label, "numbers")


def _gradients(v: Vitals) -> html.Section:
    def over_steps(values: Iterable[tuple[str, list[float] | None]]) -> list[chart.Line]:
        known = [(name, of) for name, of in values if of]
        return [
            chart.Line(
                name,
                np.arange(1, len(of) + 1, dtype=float),
                np.array(of, float),
                chart.ramp(i, len(known)),
            )
            for i, (name, of) in enumerate(known)
        ]

    names = list(v.layers)
    depth = np.array([v.layers[name].gradient_norm for name in names])
    line = chart.Line(
        "gradient", np.arange(1, len(names) + 1, dtype=float), depth, chart.colour("train")
    )
    items = v.layers.items()
    charts = html.grid(
        chart.draw_chart(
            "depth", "Gradient of each layer", [line], "layer, from the input", log=True
        ),
        chart.draw_chart(
            "time",
            "Gradient at each step",
            over_steps((n, a.gradient) for n, a in items),
            "timestep",
            log=True,
        ),
        chart.draw_chart(
            "reset",
            "Through the reset, relative to the rest",
            over_steps((n, a.reset_ratio) for n, a in items),
            "timestep",
        ),
        chart.draw_chart(
            "mask",
            "Left by the mask",
            over_steps((n, a.mask_left) for n, a in items),
            "timestep",
            True,
        ),
    )
    text = (
        "The norm of the loss's gradient at the currents, over all samples and neurons: a line that falls by powers of ten "
        "from right to left does not reach the first layers; one that rises does so too strongly. What the reset adds and "
        "the mask leaves is found by taking the gradient again without them."
    )
    return html.Section("gradients", "Gradients through depth and time", text, charts)


def _weights(v: Vitals) -> html.Section:
    rows = [
        [
            _e(name),
            *map(
                html.three_digits,
                (
                    w.norm,
                    w.gradient,
                    w.update_ratio,
                    math.nan if w.mask_alignment is None else w.mask_alignment,
                ),
            ),
        ]
        for name, w in v.weights.items()
    ]
    text = (
        "A step: how far one at the recipe's full learning rate moves the weights, relative to their size; 0.001 to 0.1 is "
        "common. Agreement: the cosine between the gradient with and without the mask."
    )
    table = (
        html.html_table(
            ["weights", "norm", "gradient", "step", "agreement"], rows, "Weights", "numbers"
        )
        if rows
        else ""
    )
    return html.Section("weights", "Steps", text, table)
