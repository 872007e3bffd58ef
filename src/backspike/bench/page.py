"""Writes a bench to its folder (bench.json, bench.md, bench.html, figures/) and to a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.chart import Picture, axes, ink
from ..report.page import Page, Part, Section, code, grid
from ..system.files import to_json, write_atomic
from ..system.table import Column, Table
from .plan import ABOUT
from .results import Bench, Outcome, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table as RichTable

_LIMITS = (2, 5)  # colours of the two limits
COLUMNS = 4  # baselines that fit into a table
GLANCE = (
    "Our fastest and most memory-efficient configuration per workload: speed-up and memory "
    "relative to each baseline."
)
NOTES = (
    "Time: median of the interleaved iterations [quartiles]; forward, backward and SGD step, "
    "random data, untrained network.",
    "Streams: 1,000 timesteps, one after the other, so milliseconds are microseconds a timestep. "
    "The limit is the time of all products, forward; computing from events alone can beat it.",
    "Memory: peak of a fresh process over three iterations, minus its memory before the network "
    "was built.",
    "vs a baseline: speed-up, and memory relative to that of the baseline.",
    "vs limit: the time of the convolutions and matrix products alone in the same precision (for a "
    "neuron layer: of moving 16 bytes per neuron and timestep), measured in the same rounds, "
    "divided by the total time.",
    "Before anything was timed, the gradients of every row, and the spikes of a stream, were "
    "compared with float64 on a small input.",
)


def write(bench: Bench, out: Path, command: str) -> Path:
    """Writes all files into `out` and returns the path of the page. Raises RunError."""
    pictures = {outcome.work.name: _pictures(outcome) for outcome in bench.outcomes}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in (p for of in pictures.values() for p in of):
        write_atomic(out / "figures" / f"{picture.name}.svg", picture.file())
    write_atomic(out / "bench.md", markdown(bench, command).encode())
    write_atomic(out / "bench.html", _page(bench, pictures, command).html())
    write_atomic(out / "bench.json", to_json(bench.complete(command)))
    return out / "bench.html"


# ---- tables --------------------------------------------------------------------------------------


def table(outcome: Outcome) -> Table:
    """All implementations of a workload, one per row."""
    rows = [cells(outcome, row) for row in outcome.ranked()]
    return _table(head(outcome), rows, title(outcome), remarks(outcome))


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, notes: Sequence[str] = ()
) -> Table:
    """A table whose columns are right-aligned, except those of names."""
    names = ("implementation", "workload", "fastest", "leanest")
    columns = [Column(head, head not in names) for head in heads]
    return Table(columns, rows, caption, notes, style="numbers compare")


def head(outcome: Outcome) -> list[str]:
    """The headings of `table`."""
    return [
        "implementation",
        "ms [quartiles]",
        {"neuron": "neuron steps/s", "stream": "timesteps/s"}.get(outcome.work.kind, "samples/s"),
        "peak MB",
        *(f"vs {r.name}: speed, memory" for r in outcome.against(COLUMNS)),
        "vs limit",
    ]


def cells(outcome: Outcome, row: Row) -> list[str]:
    """One row of `table`; for an implementation that failed, the reason."""
    if not row.measured:
        return [row.name, f"failed: {row.failed}", *[""] * (len(head(outcome)) - 2)]
    low, middle, high = (1e3 * s for s in row.seconds())
    rate = outcome.per_second(row)
    return [
        row.name,
        f"{_digits(middle)} [{_digits(low)}, {_digits(high)}]",
        f"{rate / 1e6:,.0f} M" if rate > 1e7 else f"{rate:,.0f}",
        f"{row.bytes / 1e6:,.0f}",
        *("–" if r is row else against(row, r) for r in outcome.against(COLUMNS)),
        "–" if math.isnan(share := outcome.share(row)) else f"{100 * share:.0f} %",
    ]


def against(row: Row, other: Row) -> str:
    """Speed-up over another row, and memory relative to it."""
    memory = row.bytes / other.bytes if other.bytes else math.nan
    return f"{_ratio(other.median / row.median)}, {_ratio(memory)}"


def _ratio(value: float) -> str:
    """A factor: 12.3x, 1.30x, 0.77x, 0.056x."""
    if math.isnan(value):
        return "–"
    return f"{value:.2g}x" if 0 < value < 0.0995 else f"{_digits(value)}x"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def glance(bench: Bench) -> Table | None:
    """One row per workload: our fastest and leanest configurations relative to the baseline."""
    seen = [(outcome.work.name, g) for outcome in bench.outcomes if (g := outcome.glance())]
    if not seen:
        return None
    baselines = [f"vs {seen[0][1].other}", "vs its bf16", "vs its best"]
    lines = [
        [name, _short(g.fastest), *map(_ratio, g.speed), _short(g.leanest), *map(_ratio, g.memory)]
        for name, g in seen
    ]
    speed, memory = ([f"{what} {b}" for b in baselines] for what in ("speed", "memory"))
    return _table(["workload", "fastest", *speed, "leanest", *memory], lines, GLANCE)


def _short(row: Row) -> str:
    return row.name.removeprefix("backspike, ")


def title(outcome: Outcome) -> str:
    """Name, description and size of a workload."""
    work = outcome.work
    size = (
        f"T = {work.T}, N = {work.B:,}, float32"
        if work.kind == "neuron"
        else f"T = {work.T}, B = {work.B}"
    )
    return f"{work.name}: {ABOUT[work.name]}, {size}"


def remarks(outcome: Outcome) -> list[str]:
    """Further measurements: the machine's limits for this workload, and its densities."""
    speeds = [
        f"{name} {_digits(speed)} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
        for name, speed in outcome.speeds().items()
    ]
    for bfloat16 in (False, True):
        if limit := outcome.limit(bfloat16):
            speeds.append(
                f"limit {'bf16' if bfloat16 else 'fp32'} {_digits(1e3 * limit.median)} ms"
            )
        if floor := outcome.floor(bfloat16):
            speeds.append(
                f"at least {floor[0] / 1e9:.3g} GB moved, "
                f"{_digits(1e3 * floor[1])} ms at copy speed"
            )
    lines = ["; ".join(speeds)] if speeds else []
    measured = {
        "firing rate by layer": outcome.spikes(),
        "nonzero surrogate derivatives by layer": outcome.derivatives,
        "nonzero inputs of convolutions and linear layers": outcome.inputs(),
    }
    return lines + [f"{name}: {_shares(shares)}" for name, shares in measured.items() if shares]


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * s:.1f} %" for s in shares)


def about(bench: Bench) -> list[str]:
    """The machine and the versions."""
    m = bench.machine
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gb']} GB, "
        f"{m['capability']}; {m['system']}; Python {m['python']}, torch {m['torch']}; "
        f"{bench.rounds} round{'s' * (bench.rounds != 1)}."
    ]
    if gpu := m.get("gpu"):
        lines.insert(0, f"{gpu}.")
    if bench.peers:
        versions = ", ".join(f"{name} {version}" for name, version in bench.peers.items())
        lines.append(f"Other libraries: {versions}.")
    if bench.quick:
        lines.append("Quick run with small sizes: the figures mean nothing.")
    return lines


def markdown(bench: Bench, command: str) -> str:
    """All tables and notes as Markdown."""
    lines = ["# backspike bench", "", f"`{command}`", "", *about(bench), ""]
    if seen := glance(bench):
        lines += ["## Summary", "", GLANCE, "", seen.to_markdown()]
    for outcome in bench.outcomes:
        lines += [f"## {title(outcome)}", "", table(outcome).to_markdown()]
    return "\n".join([*lines, *(f"- {note}" for note in NOTES), ""])


def terminal(bench: Bench) -> list[RichTable]:
    """The tables for rich: one per workload, then the summary."""
    tables = [*map(table, bench.outcomes), glance(bench)]
    return [shown.to_rich() for shown in tables if shown]


# ---- figures and page ----------------------------------------------------------------------------


def _pictures(outcome: Outcome) -> list[Picture]:
    rows = [row for row in outcome.ranked() if row.measured]
    if not rows:
        return []
    name = outcome.work.name.replace("%", "")
    limits = [
        (f"limit, {'bf16' if b else 'fp32'}", 1e3 * limit.median)
        for b in (False, True)
        if (limit := outcome.limit(b))
    ]
    times, sizes = [1e3 * row.median for row in rows], [row.bytes / 1e6 for row in rows]
    return [
        _bars(f"{name}-time", f"{outcome.work.name}: ms per iteration", rows, times, limits),
        _bars(f"{name}-memory", f"{outcome.work.name}: peak MB", rows, sizes, []),
    ]


def _bars(
    name: str,
    label: str,
    rows: Sequence[Row],
    values: Sequence[float],
    limits: Sequence[tuple[str, float]],
) -> Picture:
    summary = "; ".join(f"{row.name} {_digits(value)}" for row, value in zip(rows, values))
    legend = [(text, number) for (text, _), number in zip(limits, _LIMITS)]
    return Picture(
        name, label, legend, partial(_draw_bars, rows=rows, values=values, limits=limits), summary
    )


def _draw_bars(
    ax: Axes, rows: Sequence[Row], values: Sequence[float], limits: Sequence[tuple[str, float]]
) -> None:
    """One bar per row with its name above, so that it is legible on a phone."""
    figure: Any = ax.figure
    width, height = figure.get_size_inches()
    tall = max(height, 0.4 * (len(rows) + 1))
    figure.set_size_inches(width, tall)
    left, bottom, wide, high = ax.get_position().bounds
    margins = (1 - high) * height / tall  # as wide as before, in inches
    ax.set_position((left, bottom * height / tall, wide, 1 - margins))
    for i, (row, value) in enumerate(zip(rows, values)):
        ours = row.implementation.settings.library == "ours"
        ax.barh(
            i, value, height=0.42, color=ink(0 if ours else 1 if row.implementation.peer else 7)
        )
        ax.text(0, i - 0.3, f"{row.name}  {_digits(value)}", fontsize=10, va="bottom")
    for (_, value), number in zip(limits, _LIMITS):
        ax.axvline(value, color=ink(number), linewidth=1.2, zorder=0)
    axes(ax, "")
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x")
    ax.set_yticks([])
    ax.set_ylim(len(rows) - 0.5, -0.9)


def _page(bench: Bench, pictures: dict[str, list[Picture]], command: str) -> Page:
    sections = []
    if seen := glance(bench):
        shown = replace(seen, caption="Summary")
        sections.append(Section("glance", "Summary", GLANCE, [shown]))
    for outcome in bench.outcomes:
        name = outcome.work.name
        measured = " ".join(f"{text[0].upper()}{text[1:]}." for text in remarks(outcome))
        shown = replace(table(outcome), caption=name)
        drawn = grid(*(picture.figure() for picture in pictures[name]))
        text = f"{title(outcome)}. {measured}"
        sections.append(Section(name.replace("%", ""), name, text, [shown, *drawn]))
    how = Part("bullets", [*NOTES, code(command)])
    text = "bench.json has the measurements of every round."
    sections.append(Section("how", "How it was measured", text, [how]))
    lead = " ".join(about(bench))
    return Page("bench", "backspike bench", "Time and memory", sections, lead)
