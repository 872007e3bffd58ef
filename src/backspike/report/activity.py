"""Report sections on activity: firing, energy, membranes, gradients, health during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis import energy
from ..system.table import Column, Table, left, right
from .chart import Line, colour, draw_chart, draw_svg, ramp
from .format import as_percent, count, joules, plain_number, three_digits
from .page import Figure, Key, Mark, Part, Section, Text, bold, code, grid, heat_table, strong
from .run_data import Array, RunData, as_dict, layer_names, number, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARRAYS = {
    "firing_rate": Array("L T"),
    "support_share": Array("L T"),
    "membrane_counts": Array("L bins", "iu"),
    "membrane_edges": Array("edges"),
    "surrogate_z": Array("M"),
    "surrogate_h": Array("L M"),
    "spikes_per_image": Array("L"),
    "op_name": Array("E", "U"),
    "op_kind": Array("E", "U"),
    **{f"op_{key}": Array("E") for key in ("steps", "macs", "additions", "products", "spikes")},
    **{f"op_{key}": Array("E") for key in ("weights", "inputs", "outputs", "bits")},
    "op_samples": Array("", "iu"),
}


def over_steps(run: RunData, key: str, caption: str, **per_layer: str) -> list[Part | Table]:
    """A table of percentages, one row per layer and one column per timestep.

    per_layer: further columns; names of arrays with one number per layer, and their headings.
    """
    values = run.arrays.get(key)
    if values is None or not values.size:
        return []
    more = {"mean": 100 * values.mean(1)}
    more |= {head: run.arrays[name] for name, head in per_layer.items() if name in run.arrays}
    empty = Table(left("% at step"), (), caption, name=key.replace("_", "-"))
    return [heat_table(layer_names(run), values, empty, more, relative=True)]


def layer_lines(run: RunData, key: str) -> list[Line]:
    series = run.per_layer(key)
    return [
        Line(name, run.x, y, ramp(i, len(series))) for i, (name, y) in enumerate(series.items())
    ]


def firing(run: RunData) -> Section:
    spikes = run.arrays.get("spikes_per_image")
    table = over_steps(run, "firing_rate", "Firing rates", spikes_per_image="spikes per sample")
    lines = layer_lines(run, "firing_rate")
    chart = draw_chart("firing-epochs", "Firing rate during training", lines, "epoch", True)
    total = "" if spikes is None else f" One sample takes {count(float(spikes.sum()))} spikes."
    text = (
        "The percentage of a layer's neurons that spike. Near 0 a layer sends no signal to the "
        "next one, near 100 its spikes carry no information. Few spikes make these networks cheap "
        f"on neuromorphic hardware.{total}"
    )
    return Section("firing", "Firing rates", text, [*table, *grid(chart)])


def energy_section(run: RunData) -> Section:
    T = number(run.fields.get("T"))
    layers = energy.layers(run.arrays, int(T) if math.isfinite(T) else 1)
    if not layers:
        return Section("energy", "")
    ann, snn = (
        energy.total(layer.ann for layer in layers),
        energy.total(layer.snn for layer in layers),
    )
    prices = {
        "arithmetic only": 0.0,
        "with memory access, all SRAM": energy.SRAM,
        "with memory access, all DRAM": energy.DRAM,
    }
    compared = {
        name: (ann.with_memory(word), snn.with_memory(word)) for name, word in prices.items()
    }
    times = {name: s / a if a else math.inf for name, (a, s) in compared.items()}
    totals = [
        [name, joules(a), joules(s), f"{three_digits(times[name])}\u202f×"]
        for name, (a, s) in compared.items()
    ]
    heads = right("without spikes", "spiking", "spiking / without")
    columns = [*left("estimate per sample"), *heads]
    table = Table(columns, totals, "Total energy", name="energy")
    costlier = ", ".join(
        f"{three_digits(times[name])} times as much {name}"
        for name, (a, s) in compared.items()
        if s > a
    )
    warning = [
        strong("The spiking network needs more energy"),
        f" than the equivalent non-spiking network: {costlier}. Fewer timesteps, fewer spikes and "
        "hardware that stores weights and membranes locally reduce it.",
    ]
    repeated = " is computed only once because its input is the same at every timestep."
    once = [part for x in layers if x.steps < T for part in (" ", code(x.name), repeated)]
    text = [
        f"Counted on {count(float(run.arrays['op_samples']))} test samples and compared with a "
        "single pass of the same layers without spikes. A spike costs one addition (AC) at every "
        "output it reaches. A real-valued input, such as an image in the first layer, costs a "
        "multiply-accumulate (MAC). For pooled spikes the cheaper of the two is used. A neuron "
        "costs one MAC per timestep.",
        *once,
        " Normalisation layers are folded into the weights; pooling and residual additions are not "
        "counted. Energies from Horowitz 2014 (ISSCC, 45\u202fnm, 32 bits): "
        f"MAC {energy.MAC:g}\u202fpJ, AC {energy.AC:g}\u202fpJ, one word from 8\u202fkB of SRAM "
        f"{energy.SRAM:g}\u202fpJ, from DRAM {energy.DRAM:g}\u202fpJ. Each word is assumed to move "
        "once per layer and timestep: weights and inputs are read, outputs are written, membranes "
        "are read and written, and a spike is one bit.",
    ]
    notice = [Part("notice", warning)] if costlier else []
    return Section("energy", "Energy, estimated", text, [*notice, table, _energy_table(layers)])


def _energy_table(layers: Sequence[energy.Layer]) -> Table:
    """One row per layer in execution order, and the total, each without and with spikes."""
    ann, snn = (
        energy.total(layer.ann for layer in layers),
        energy.total(layer.snn for layer in layers),
    )
    lines: list[tuple[Text, str, str, energy.Cost, energy.Cost]] = [
        *((x.name, f"{x.steps}", count(x.spikes), x.ann, x.snn) for x in layers),
        (bold("total"), "", "", ann, snn),
    ]
    rows = [
        [name, steps, spikes, a.macs, s.macs, s.acs, a.arithmetic, s.arithmetic, a.words, s.words]
        for name, steps, spikes, a, s in lines
    ]
    columns = [
        *left("layer"),
        *right("steps", "spikes"),
        *right("MACs, without", "MACs, spiking", "ACs, spiking", format=count),
        *right("arithmetic, without", "arithmetic, spiking", format=joules),
        *right("words moved, without", "words moved, spiking", format=count),
    ]
    return Table(columns, rows, "Energy per layer")


def membranes(run: RunData) -> Section:
    arrays, keys = run.arrays, ("membrane_counts", "membrane_edges", "surrogate_z", "surrogate_h")
    if not all(key in arrays for key in keys):
        return Section("membranes", "")
    counts, edges, z, h = (arrays[key] for key in keys)
    logged = {
        k: v for k, v in as_dict(run.initial.get("membrane_counts")).items() if isinstance(v, list)
    }
    before = {
        k: np.array(v)
        for k, v in logged.items()
        if len(v) == counts.shape[1] and all(type(n) is int for n in v)
    }
    names = layer_names(run)
    figures = [
        _membrane(i, name, counts[i], before.get(name), edges, z, h[i])
        for i, name in enumerate(names)
    ]
    text = (
        "Gradients flow only where the membrane potential lies within the surrogate. Too narrow, "
        "and they vanish; too wide, and they are a poor approximation. Both curves are scaled to "
        "their own maximum. The outermost bars hold all values beyond them and may be cut off."
    )
    legend = [
        Key("membranes", "var(--hist)", "block"),
        *[Key("before training", "var(--ink)")] * bool(before),
        Key("surrogate derivative", "var(--valid)"),
        Key("threshold", style="upright"),
    ]
    body = [Part("legend", legend), *grid(*figures)]
    return Section("membranes", "Membrane potentials and surrogate", text, body)


def _membrane(
    index: int,
    name: str,
    counts: np.ndarray,
    before: np.ndarray | None,
    edges: np.ndarray,
    z: np.ndarray,
    h: np.ndarray,
) -> Figure:
    above = counts[edges[:-1] >= 0].sum() / max(counts.sum(), 1)

    def plot(ax: Axes) -> None:
        heights = counts / (counts[1:-1].max(initial=0) or 1)
        ax.stairs(heights, edges, fill=True, color=colour("hist"), linewidth=0)
        if before is not None:
            heights = before / (before[1:-1].max(initial=0) or 1)
            ax.stairs(heights, edges, color=colour("ink"), linewidth=0.9)
        inside = (z >= edges[0]) & (z <= edges[-1])
        ax.plot(z[inside], h[inside] / (h.max() or 1), color=colour("valid"), linewidth=1.8)
        ax.axvline(0, color=colour("soft"), linewidth=1, linestyle=(0, (2, 3)))
        ax.locator_params("x", nbins=5)
        ax.set(
            xlabel="membrane potential minus threshold",
            yticks=[],
            xlim=(edges[0], edges[-1]),
            ylim=(0, 1.05),
        )

    mode = (edges[:-1] + edges[1:])[counts.argmax()] / 2
    alt = (
        f"Membrane potentials of layer {name}: the most frequent lie {mode:.2g} from the "
        f"threshold, {as_percent(above)} at or above it"
    )
    drawn = draw_svg(f"membrane-{index}", alt, plot, left=0.04)
    note = (
        f"{as_percent(above)} at or above the threshold, derivative up to {plain_number(h.max())}"
    )
    return Figure(f"membrane-{index}", [f"{name} ", Mark("small", note)], drawn)


_POTENTIAL = {
    "mean": ("mean", three_digits),
    "std": ("standard deviation", three_digits),
    "quantisation_error": ("quantisation error", three_digits),
    "active_share": ("near the threshold", as_percent),
    "share_below": ("≤ 0", as_percent),
    "share_above": ("≥ twice the threshold", as_percent),
}


def potentials(run: RunData) -> Section:
    before, after = (
        as_dict(e.get("potential")) for e in (run.initial, run.epochs[-1] if run.epochs else {})
    )
    rows, steps = [], []
    for name in after:
        then, now = as_dict(before.get(name)), as_dict(after[name])
        pairs = [
            (number(then.get(key)), number(now.get(key)), write)
            for key, (_, write) in _POTENTIAL.items()
        ]
        moved = (
            f"{write(a)} → {write(b)}" if math.isfinite(a) else write(b) for a, b, write in pairs
        )
        rows.append([name, *moved])
        series = [v if isinstance(v := now.get(key), list) else [] for key in _POTENTIAL]
        for t in range(max(map(len, series))):
            cells = [number(values[t]) if t < len(values) else math.nan for values in series]
            steps.append([f"{name}, step {t + 1}", *cells])
    text = (
        "Membrane potentials u on a batch of validation samples, before and after training: mean "
        "and standard deviation, the mean squared error of replacing u by a spike of the "
        "threshold's height or by 0, and the share of values near the threshold (within half the "
        "surrogate's width), at or below 0, and at or above twice the threshold."
    )
    quantities = [Column(head, True, write) for head, write in _POTENTIAL.values()]
    heads = right(*(head for head, _ in _POTENTIAL.values()))
    table = Table([*left("layer"), *heads], rows, "Potentials per layer")
    folded = Table([*left("layer"), *quantities], steps, "Potentials per layer and timestep")
    body: list[Part | Table] = [table, Part("details", ("By timestep", folded))]
    return Section("potentials", "Potentials", text, body if rows else [])


def support(run: RunData) -> Section:
    table = over_steps(run, "support_share", "Neurons with a gradient")
    lines, title = (
        layer_lines(run, "support_share"),
        "Share of neurons with a gradient during training",
    )
    chart = draw_chart("support-epochs", title, lines, "epoch", True)
    shares = run.series("masked_share")
    masked = shares[np.isfinite(shares)]
    dropped = (
        f" The mask drops a random {as_percent(masked[-1])} of them, drawn anew in every step."
        if masked.any()
        else ""
    )
    text = (
        "The percentage of neurons whose surrogate derivative is above 1\u202f% of its maximum. "
        "Only these receive a gradient. Near 0 a layer does not learn; near 100 almost every "
        f"neuron is updated with an approximate gradient.{dropped}"
    )
    return Section("support", "Neurons that receive a gradient", text, [*table, *grid(chart)])


def watch(run: RunData) -> Section:
    x = np.array([event["epochs"] for event in run.watched], float)
    seen = [as_dict(event.get("vitals")) for event in run.watched]

    def lines(kind: str, key: str) -> list[Line]:
        of = [as_dict(vitals.get(kind)) for vitals in seen]
        names = list(dict.fromkeys(name for values in of for name in values))
        series = [
            np.array([size(as_dict(values.get(name)).get(key)) for values in of]) for name in names
        ]
        return [
            Line(name, x, y, ramp(i, len(names))) for i, (name, y) in enumerate(zip(names, series))
        ]

    shown: tuple[tuple[str, str, str, str, dict[str, bool]], ...] = (
        ("gradient", "Gradient of the input currents", "layers", "gradient", {"log": True}),
        ("step", _STEP, "weights", "update_ratio", {"log": True}),
        ("reset", "Gradient through the reset, relative", "layers", "reset_ratio", {}),
        ("mask", "Agreement with the unmasked gradient", "weights", "mask_alignment", {}),
        ("dead", "Channels that never fire", "layers", "dead", {"percent": True}),
    )
    charts = grid(
        *(
            draw_chart(f"watch-{name}", title, lines(kind, key), "epochs completed", **scale)
            for name, title, kind, key, scale in shown
        )
    )
    text: Text = [
        "The measurements of ",
        code("backspike doctor"),
        " on 64 training samples, before training and after every epoch: the size of the gradient "
        "that reaches each layer, the relative weight update, the gradient through the reset, and "
        "the cosine similarity of the masked to the unmasked gradient (1: same direction, "
        "0: noise).",
    ]
    body = charts and [*charts, watch_findings(run)]
    return Section("watch", "Health during training", text, body)


_STEP = "Weight update at the full learning rate, relative"


def size(value: Any) -> float:
    """The number itself, or the root mean square of a list."""
    if not isinstance(value, list):
        return number(value)
    return math.sqrt(np.mean([number(item) ** 2 for item in value])) if value else math.nan


def watch_findings(run: RunData) -> Part | Table:
    rows: dict[str, list[Any]] = {}
    for event in run.watched:
        findings = event.get("findings")
        for finding in findings if isinstance(findings, list) else []:
            finding = as_dict(finding)
            places = finding.get("where")
            key = f"{_problem(finding)} {places}"
            where = ", ".join(map(str, places)) if isinstance(places, list) else ""
            rows.setdefault(key, [finding, where, []])[2].append(event["epochs"])
    if not rows:
        return Part("paragraph", "No problem was found at any time.")
    cells = [
        [_problem(f), where, spans(at), str(f.get("found")), advice(f)]
        for f, where, at in rows.values()
    ]
    columns = left("problem", "layers", "after epoch", "measured", "advice")
    return Table(columns, cells, "Findings")


def _problem(finding: dict[str, Any]) -> str:
    return str(finding.get("problem", finding.get("illness")))  # older logs have "illness"


def advice(finding: dict[str, Any]) -> Text:
    flags, text = finding.get("flags"), str(finding.get("advice"))
    return [f"{text}: ", code(flags)] if flags else text


def spans(numbers: Sequence[int]) -> str:
    return (
        f"{numbers[0]}"
        if len(numbers) == 1
        else f"{numbers[0]} to {numbers[-1]} ({len(numbers)} times)"
    )


def constants(run: RunData) -> Section:
    before = as_dict(run.initial.get("constants"))
    after = as_dict(run.epochs[-1].get("constants")) if run.epochs else {}
    figures = [
        _constant(i, name, as_dict(before.get(name)), as_dict(now))
        for i, (name, now) in enumerate(after.items())
        if _is_histogram(now)
    ]
    if not figures:
        return Section("constants", "")
    text = (
        "The values of constants that differ between the channels or neurons of a layer, after the "
        "last epoch. Time constants are in timesteps."
    )
    known = any(map(_is_histogram, before.values()))
    keys = [Key("last epoch", "var(--hist)", "block"), *[Key("before", "var(--ink)")] * known]
    return Section(
        "constants", "Constants of the neurons", text, [Part("legend", keys), *grid(*figures)]
    )


def _is_histogram(h: Any) -> bool:
    edges, counts = (numbers(as_dict(h).get(key)) for key in ("edges", "counts"))
    return len(counts) > 0 and len(edges) == len(counts) + 1 and edges == sorted(edges)


def _constant(index: int, name: str, before: dict[str, Any], after: dict[str, Any]) -> Figure:
    def plot(ax: Axes) -> None:
        ax.stairs(_density(after), after["edges"], fill=True, color=colour("hist"), linewidth=0)
        if _is_histogram(before):
            ax.stairs(_density(before), before["edges"], color=colour("ink"), linewidth=0.9)
        ax.set_yticks([])

    edges = after["edges"]
    alt = f"Histogram of {name}: from {edges[0]:.3g} to {edges[-1]:.3g}"
    drawn = draw_svg(f"constant-{index}", alt, plot, left=0.04)
    return Figure(f"constant-{index}", name, drawn)


def _density(h: dict[str, Any]) -> np.ndarray:
    counts, edges = np.array(h["counts"], float), np.array(h["edges"], float)
    return counts / (counts.sum() or 1) / np.maximum(np.diff(edges), 1e-12)


def widths(run: RunData) -> Section:
    text = (
        "The learned width of each layer's surrogate. A wider surrogate lets gradients flow at "
        "membrane potentials further from the threshold, a narrower one only close to it."
    )
    chart = draw_chart("widths", "Width", layer_lines(run, "widths"), "epoch")
    return Section("widths", "Learned surrogate widths", text, grid(chart))
