"""Report sections: firing, energy, membranes, potentials, support of the surrogate, and what was watched in training."""

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
from .run_data import Array, RunData, as_dict, layer_names, number

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
    """Layers down, timesteps across, in percent; per_layer: columns of an array of one number per layer, by their heads."""
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
    chart = draw_chart("firing-epochs", "Firing rate while training", lines, "epoch", True)
    total = (
        "" if spikes is None else f" One sample costs {count(float(spikes.sum()))} spikes in all."
    )
    text = (
        "How many of a layer's neurons spike, in percent: a layer near 0 passes nothing on, one near 100 tells nothing, and "
        f"few spikes are what makes these networks cheap on neuromorphic hardware.{total}"
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
        "arithmetic alone": 0.0,
        "with memory, all in SRAM": energy.SRAM,
        "with memory, all in DRAM": energy.DRAM,
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
    columns = [*left("estimate for one sample"), *heads]
    table = Table(columns, totals, "Energy in all", name="energy")
    dearer = ", ".join(
        f"{name} {three_digits(times[name])} times as much"
        for name, (a, s) in compared.items()
        if s > a
    )
    warning = [
        strong("The spiking network costs more"),
        f" than the equal network without spikes: {dearer}. Fewer timesteps and fewer spikes lower it, and hardware that keeps "
        "weights and membranes at hand.",
    ]
    repeated = " is computed once, as its input is the same at every timestep."
    once = [part for x in layers if x.steps < T for part in (" ", code(x.name), repeated)]
    text = [
        f"Counted on {count(float(run.arrays['op_samples']))} test samples, beside the same layers run once without spikes. A "
        "spike costs an addition (AC) at every output that it reaches; a real number, as a first layer sees of an image, a "
        "multiply-accumulate (MAC); spikes that a pool has added up whichever of both is less. A neuron costs a MAC a timestep.",
        *once,
        " Norms are folded into weights; pools and the additions of branches are left out. Prices of Horowitz 2014 "
        f"(ISSCC, 45\u202fnm, 32 bits): MAC {energy.MAC:g}\u202fpJ, AC {energy.AC:g}\u202fpJ, a word from 8\u202fkB of SRAM "
        f"{energy.SRAM:g}\u202fpJ, from DRAM {energy.DRAM:g}\u202fpJ. A word is taken to move once per layer and timestep: "
        "weights and inputs are read, outputs written; a membrane is read and written, a spike is a bit.",
    ]
    notice = [Part("notice", warning)] if dearer else []
    return Section("energy", "Energy, estimated", text, [*notice, table, _energy_table(layers)])


def _energy_table(layers: Sequence[energy.Layer]) -> Table:
    """The layers in the order in which they ran, and their sum; each quantity without spikes and spiking."""
    ann, snn = (
        energy.total(layer.ann for layer in layers),
        energy.total(layer.snn for layer in layers),
    )
    lines: list[tuple[Text, str, str, energy.Cost, energy.Cost]] = [
        *((x.name, f"{x.steps}", count(x.spikes), x.ann, x.snn) for x in layers),
        (bold("in all"), "", "", ann, snn),
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
    return Table(columns, rows, "Energy of each layer")


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
        "Only where the membranes lie under the surrogate derivative does a gradient pass: beside a narrow curve it vanishes, "
        "under one that covers everything it strays from the true one. Both are drawn relative to their own peaks; the "
        "outermost bars hold all that lies beyond, and may be cut off."
    )
    legend = [
        Key("membranes", "var(--hist)", "block"),
        *[Key("before training", "var(--ink)")] * bool(before),
        Key("surrogate derivative", "var(--valid)"),
        Key("threshold", style="upright"),
    ]
    body = [Part("legend", legend), *grid(*figures)]
    return Section("membranes", "Membranes and the surrogate", text, body)


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
            xlabel="membrane minus threshold", yticks=[], xlim=(edges[0], edges[-1]), ylim=(0, 1.05)
        )

    mode = (edges[:-1] + edges[1:])[counts.argmax()] / 2
    alt = f"Membranes of layer {name}: most often {mode:.2g} from the threshold, {as_percent(above)} at or above it"
    drawn = draw_svg(f"membrane-{index}", alt, plot, left=0.04)
    said = (
        f"{as_percent(above)} at or above the threshold, derivative up to {plain_number(h.max())}"
    )
    return Figure(f"membrane-{index}", [f"{name} ", Mark("small", said)], drawn)


_POTENTIAL = {
    "mean": ("mean", three_digits),
    "std": ("spread", three_digits),
    "quantisation_error": ("rounding error", three_digits),
    "active_share": ("in the window", as_percent),
    "share_below": ("at rest or below", as_percent),
    "share_above": ("at twice the threshold or above", as_percent),
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
        "Where the potentials u lie, on a batch of validation samples, before training and at its end: mean and spread; the "
        "mean square of what is lost when u is rounded to a spike of the threshold's height or to none; the shares near the "
        "threshold (within half the surrogate's width), at 0 or below, and at twice the threshold or above."
    )
    quantities = [Column(head, True, write) for head, write in _POTENTIAL.values()]
    heads = right(*(head for head, _ in _POTENTIAL.values()))
    table = Table([*left("layer"), *heads], rows, "Potentials of each layer")
    folded = Table([*left("layer"), *quantities], steps, "Potentials of each layer and step")
    body: list[Part | Table] = [table, Part("details", ("Step by step", folded))]
    return Section("potentials", "Potentials", text, body if rows else [])


def support(run: RunData) -> Section:
    table = over_steps(run, "support_share", "Neurons with a gradient")
    lines, title = layer_lines(run, "support_share"), "Share with a gradient while training"
    chart = draw_chart("support-epochs", title, lines, "epoch", True)
    shares = run.series("masked_share")
    masked = shares[np.isfinite(shares)]
    dropped = (
        f" The mask then drops {as_percent(masked[-1])} of them at random, anew in every step."
        if masked.any()
        else ""
    )
    text = (
        "The share of neurons, in percent, whose surrogate derivative is above 1\u202f% of its peak: only they receive a "
        f"gradient. Near 0 a layer does not learn; near 100 almost every neuron is pushed by an approximation.{dropped}"
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
        ("gradient", "Gradient of the currents", "layers", "gradient", {"log": True}),
        ("step", _STEP, "weights", "update_ratio", {"log": True}),
        ("reset", "Gradient through the reset, relative to the rest", "layers", "reset_ratio", {}),
        ("mask", "Agreement with the unmasked gradient", "weights", "mask_alignment", {}),
        ("dead", "Channels that never fire", "layers", "dead", {"percent": True}),
    )
    charts = grid(
        *(
            draw_chart(f"watch-{name}", title, lines(kind, key), "epochs done", **scale)
            for name, title, kind, key, scale in shown
        )
    )
    text: Text = [
        "What ",
        code("backspike doctor"),
        " measures, on 64 training samples before training and after every epoch: how large a gradient reaches each layer, how "
        "far a step moves weights, what comes through the reset, and how much of the direction a mask leaves (1: all, 0: noise).",
    ]
    body = charts and [*charts, watch_findings(run)]
    return Section("watch", "Health while training", text, body)


_STEP = "Step at the full rate, relative to the weights"


def size(value: Any) -> float:
    """A number; of a list, the root of the mean square."""
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
            key = f"{finding.get('problem', finding.get('illness'))} {places}"
            where = ", ".join(map(str, places)) if isinstance(places, list) else ""
            rows.setdefault(key, [finding, where, []])[2].append(event["epochs"])
    if not rows:
        return Part("paragraph", "Nothing was found at any time.")
    cells = [
        [str(f.get("problem", f.get("illness"))), where, spans(at), str(f.get("found")), advice(f)]
        for f, where, at in rows.values()
    ]
    columns = left("finding", "where", "after epochs", "what", "to try")
    return Table(columns, cells, "Findings")


def advice(finding: dict[str, Any]) -> Text:
    flags, text = finding.get("flags"), str(finding.get("advice"))
    return [f"{text}: ", code(flags)] if flags else text


def spans(numbers: Sequence[int]) -> str:
    return (
        f"{numbers[0]}"
        if len(numbers) == 1
        else f"{numbers[0]} to {numbers[-1]}, {len(numbers)} times"
    )


def widths(run: RunData) -> Section:
    text = (
        "The learned width of each layer's surrogate: a layer that widens asks for gradients from membranes further from the "
        "threshold, one that narrows trusts those close to it."
    )
    chart = draw_chart("widths", "Width", layer_lines(run, "widths"), "epoch")
    return Section("widths", "Learned widths of the surrogate", text, grid(chart))
