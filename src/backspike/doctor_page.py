"""The page of an examination: its findings, and pictures of what was measured, made with the parts of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from . import report
from .diagnosis import Finding
from .doctor import Examination
from .run import write_atomic
from .vitals import Vitals

_e = report._e


def write(examination: Examination, path: Path) -> Path:
    """Writes the page and returns its path. Raises RunError where it cannot be written."""
    v, recipe = examination.vitals, examination.recipe
    state = "as training left it" if examination.trained else "before training"
    ill = [f for f in examination.findings if not f.note]
    tiles = report._tiles([
        ("Findings", f"{len(ill)}" if ill else "none", "what keeps it from learning" if ill else "nothing stands in its way"),
        ("Cross-entropy", f"{v.cross_entropy:.3g}", f"answers at random: {math.log(v.classes):.3g}"),
        ("Accuracy", report._percent(v.accuracy), f"of {v.samples} training samples"),
        ("Timesteps", f"{v.T}", f"{len(v.layers)} spiking layers"),
    ])  # fmt: skip
    head = (
        f"<header><p>backspike · doctor</p><h1>{_e(examination.subject)}</h1>"
        f'<p class="lead"><code>{_e(recipe.model)}</code> · <code>{_e(recipe.neuron.surrogate)}</code> on '
        f"<b>{_e(recipe.data)}</b>, {state}</p>{tiles}</header>"
    )
    sections = [_findings(examination.findings), _layers(v), _gradients(v), _weights(v)]
    body = head + "".join(section.html() for section in sections if section.body)
    page = report._page(f"{examination.subject} · backspike doctor", body)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def _findings(findings: Sequence[Finding]) -> report._Section:
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
    table = report._table(["finding", "where", "what", "to try"], rows, "Findings", "pairs") if rows else ""
    return report._Section("findings", "Findings", text, table)


def _layers(v: Vitals) -> report._Section:
    text = (
        "Of each layer, in percent and step by step: how many neurons fire, and how many potentials lie under the surrogate, "
        "where a gradient passes."
    )
    rates = _heat("Firing rate, % at step", {name: layer.firing_rate for name, layer in v.layers.items()})
    support = _heat("Under the surrogate, % at step", {name: layer.support_share for name, layer in v.layers.items()})
    return report._Section("layers", "Spikes and potentials", text, rates + support)


def _heat(label: str, values: dict[str, list[float]]) -> str:
    if not values:
        return ""
    groups = report._groups(max(map(len, values.values())), report._MAX_STEPS)
    rows = []
    for name, of in values.items():
        means = [float(np.mean([of[t] for t in group if t < len(of)] or [math.nan])) for group in groups]
        rows.append([_e(name), *(report._shade(np.nan_to_num(m), report._tenths(100 * m)) for m in means)])
    return report._table([label, *report._step_names(groups)], rows, label, "numbers")


def _gradients(v: Vitals) -> report._Section:
    def over_steps(values: Iterable[tuple[str, list[float] | None]]) -> list[report._Line]:
        known = [(name, of) for name, of in values if of]
        return [
            report._Line(name, np.arange(1, len(of) + 1, dtype=float), np.array(of, float), report._ramp(i, len(known)))
            for i, (name, of) in enumerate(known)
        ]

    names = list(v.layers)
    depth = np.array([v.layers[name].gradient_norm for name in names])
    line = report._Line("gradient", np.arange(1, len(names) + 1, dtype=float), depth, report._colour("train"))
    items = v.layers.items()
    charts = report._grid(
        report._chart("depth", "Gradient of each layer", [line], "layer, from the input", log=True),
        report._chart("time", "Gradient at each step", over_steps((n, a.gradient) for n, a in items), "timestep", log=True),
        report._chart(
            "reset", "Through the reset, relative to the rest", over_steps((n, a.reset_ratio) for n, a in items), "timestep"
        ),
        report._chart("mask", "Left by the mask", over_steps((n, a.mask_left) for n, a in items), "timestep", True),
    )
    text = (
        "The norm of the loss's gradient at the currents, over all samples and neurons: a line that falls by powers of ten "
        "from right to left does not reach the first layers; one that rises does so too strongly. What the reset adds and "
        "the mask leaves is found by taking the gradient again without them."
    )
    return report._Section("gradients", "Gradients through depth and time", text, charts)


def _weights(v: Vitals) -> report._Section:
    rows = [
        [
            _e(name),
            *map(
                report._tidy, (w.norm, w.gradient, w.update_ratio, math.nan if w.mask_alignment is None else w.mask_alignment)
            ),
        ]
        for name, w in v.weights.items()
    ]
    text = (
        "A step: how far one at the recipe's full learning rate moves the weights, relative to their size; 0.001 to 0.1 is "
        "common. Agreement: the cosine between the gradient with and without the mask."
    )
    table = report._table(["weights", "norm", "gradient", "step", "agreement"], rows, "Weights", "numbers") if rows else ""
    return report._Section("weights", "Steps", text, table)
