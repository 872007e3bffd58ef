"""What a bench leaves in its folder: bench.json, bench.md, figures/ and bench.html; and its tables on a terminal."""

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

_LIMITS = (2, 5)  # colours
COLUMNS = 4  # references that a table has room for
GLANCE = "Our fastest and our leanest row of each workload: how many times as fast, and the part of the memory."
NOTES = (
    "Time: median of the interleaved iterations [quartiles]; forward, backward and SGD step, random data, untrained.",
    "Memory: peak of the fresh process beyond what it held before the network was made, over three iterations.",
    "Against another: how many times as fast, and the part of its memory.",
    "Of the limit: the time of the bare products (neurons alone: of moving 16 bytes an element-step) in the same precision, "
    "measured in the same rounds, divided by the time of the whole.",
    "Every row passed the gate: its gradients on a small input were compared with float64 before anything was timed.",
)


def write(bench: Bench, out: Path, command: str) -> Path:
    """Writes the folder and returns the path of its page."""
    pictures = {outcome.work.name: _pictures(outcome) for outcome in bench.outcomes}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in (p for of in pictures.values() for p in of):
        write_atomic(out / "figures" / f"{picture.name}.svg", picture.file())
    write_atomic(out / "bench.md", markdown(bench, command).encode())
    write_atomic(out / "bench.html", _page(bench, pictures, command).html())
    write_atomic(out / "bench.json", to_json(bench.complete(command)))
    return out / "bench.html"


# ---- tables --------------------------------------------------------------------------------------------------------------


def table(outcome: Outcome) -> Table:
    rows = [cells(outcome, row) for row in outcome.ranked()]
    return _table(head(outcome), rows, title(outcome), remarks(outcome))


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, notes: Sequence[str] = ()
) -> Table:
    """What is not a name stands at the right."""
    names = ("implementation", "workload", "fastest", "leanest")
    columns = [Column(head, head not in names) for head in heads]
    return Table(columns, rows, caption, notes, style="numbers compare")


def head(outcome: Outcome) -> list[str]:
    return [
        "implementation",
        "ms [quartiles]",
        "neuron steps/s" if outcome.work.kind == "neuron" else "samples/s",
        "peak MB",
        *(f"against {r.name}" for r in outcome.against(COLUMNS)),
        "of the limit",
    ]


def cells(outcome: Outcome, row: Row) -> list[str]:
    """One line under `head`; of a row that failed, why."""
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
    """How many times as fast as another, and the part of its memory."""
    return f"{_digits(other.median / row.median)}x, {_part(row.bytes / other.bytes if other.bytes else math.nan)}"


def _part(memory: float) -> str:
    return (
        "–"
        if math.isnan(memory)
        else f"1/{_digits(1 / memory)}"
        if 0 < memory < 1
        else _digits(memory)
    )


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def glance(bench: Bench) -> Table | None:
    """A line for each workload: our fastest and leanest row against the library that it is compared with."""
    seen = [(outcome.work.name, g) for outcome in bench.outcomes if (g := outcome.glance())]
    if not seen:
        return None
    against = [seen[0][1].other, "in bf16", "at its best"]
    lines = []
    for name, g in seen:
        speed = ["–" if math.isnan(x) else f"{_digits(x)}x" for x in g.speed]
        lines.append([name, _short(g.fastest), *speed, _short(g.leanest), *map(_part, g.memory)])
    return _table(["workload", "fastest", *against, "leanest", *against], lines, GLANCE)


def _short(row: Row) -> str:
    return row.name.removeprefix("backspike, ")


def title(outcome: Outcome) -> str:
    work = outcome.work
    size = (
        f"T = {work.T}, N = {work.B:,}, float32"
        if work.kind == "neuron"
        else f"T = {work.T}, B = {work.B}"
    )
    return f"{work.name}: {ABOUT[work.name]}, {size}"


def remarks(outcome: Outcome) -> list[str]:
    """What else was measured: the machine's speeds for this workload, and the density that was reached."""
    said = [
        f"{name} {_digits(speed)} {'GB/s' if name == 'copy' else 'GFLOP/s'}"
        for name, speed in outcome.speeds().items()
    ]
    for bfloat16 in (False, True):
        if limit := outcome.limit(bfloat16):
            said.append(f"limit {'bf16' if bfloat16 else 'fp32'} {_digits(1e3 * limit.median)} ms")
        if floor := outcome.floor(bfloat16):
            said.append(
                f"{floor[0] / 1e9:.3g} GB moved at least, {_digits(1e3 * floor[1])} ms at the copy speed"
            )
    lines = ["; ".join(said)] if said else []
    measured = {
        "spikes": outcome.spikes(),
        "surrogate derivatives that are not zero": outcome.derivatives,
        "what products are given and is not zero": outcome.inputs(),
    }
    return lines + [
        f"{name}: {_shares(shares)}, by layer" for name, shares in measured.items() if shares
    ]


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * s:.1f} %" for s in shares)


def about(bench: Bench) -> list[str]:
    """The machine and the versions."""
    m = bench.machine
    lines = [
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gb']} GB, {m['capability']}; {m['system']}; "
        f"Python {m['python']}, torch {m['torch']}; {bench.rounds} rounds."
    ]
    if gpu := m.get("gpu"):
        lines.insert(0, f"{gpu}.")
    if bench.peers:
        lines.append(
            f"Peers: {', '.join(f'{name} {version}' for name, version in bench.peers.items())}."
        )
    if bench.quick:
        lines.append("Quick: sizes for tests, figures mean nothing.")
    return lines


def markdown(bench: Bench, command: str) -> str:
    lines = ["# backspike bench", "", f"`{command}`", "", *about(bench), ""]
    if seen := glance(bench):
        lines += ["## At a glance", "", GLANCE, "", seen.to_markdown()]
    for outcome in bench.outcomes:
        lines += [f"## {title(outcome)}", "", table(outcome).to_markdown()]
    return "\n".join([*lines, *(f"- {note}" for note in NOTES), ""])


def terminal(bench: Bench) -> list[RichTable]:
    """The tables for rich: one for each workload, then all at a glance."""
    tables = [*map(table, bench.outcomes), glance(bench)]
    return [shown.to_rich() for shown in tables if shown]


# ---- pictures and page ---------------------------------------------------------------------------------------------------


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
        _bars(f"{name}-time", f"{outcome.work.name}: ms an iteration", rows, times, limits),
        _bars(f"{name}-memory", f"{outcome.work.name}: peak MB", rows, sizes, []),
    ]


def _bars(
    name: str,
    label: str,
    rows: Sequence[Row],
    values: Sequence[float],
    limits: Sequence[tuple[str, float]],
) -> Picture:
    said = "; ".join(f"{row.name} {_digits(value)}" for row, value in zip(rows, values))
    legend = [(text, number) for (text, _), number in zip(limits, _LIMITS)]
    return Picture(
        name, label, legend, partial(_draw_bars, rows=rows, values=values, limits=limits), said
    )


def _draw_bars(
    ax: Axes, rows: Sequence[Row], values: Sequence[float], limits: Sequence[tuple[str, float]]
) -> None:
    """A bar for each row with its name above it, so that it is legible on a phone."""
    figure: Any = ax.figure
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, max(height, 0.36 * (len(rows) + 1)))
    for i, (row, value) in enumerate(zip(rows, values)):
        ours = row.implementation.settings.library == "ours"
        ax.barh(
            i, value, height=0.42, color=ink(0 if ours else 1 if row.implementation.peer else 7)
        )
        ax.text(0, i - 0.3, f"{row.name}  {_digits(value)}", fontsize=8.5, va="bottom")
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
        shown = replace(seen, caption="at a glance")
        sections.append(Section("glance", "At a glance", GLANCE, [shown]))
    for outcome in bench.outcomes:
        name = outcome.work.name
        said = " ".join(f"{text}." for text in remarks(outcome))
        shown = replace(table(outcome), caption=name)
        drawn = grid(*(picture.figure() for picture in pictures[name]))
        text = f"{title(outcome)}. {said}"
        sections.append(Section(name.replace("%", ""), name, text, [shown, *drawn]))
    how = Part("bullets", [*NOTES, code(command)])
    text = "All numbers of all rounds stand in bench.json."
    sections.append(Section("how", "How it was measured", text, [how]))
    lead = " ".join(about(bench))
    return Page("bench", "backspike bench", "Time and memory", sections, lead)
