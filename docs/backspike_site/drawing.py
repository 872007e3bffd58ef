"""The figures of the gallery: transparent, so that the site can turn them for the dark theme."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

import backspike as bs
from backspike.report.summary import Row

STYLE = {
    "savefig.transparent": True,
    "savefig.bbox": "tight",
    "svg.hashsalt": "backspike",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SYNAPSE, NEURON, OTHER = "#4c8ed9", "#e8903a", "#9aa0a6"
LEGEND = {"synapses": SYNAPSE, "neurons": NEURON, "pools and others": OTHER}


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the same figure gives the same file."""
    with rc_context(STYLE):
        figure.savefig(path, metadata={"Date": None})


def trace(x: Tensor, membrane: Tensor, spikes: Tensor, threshold: bool) -> Figure:
    """Current above, membrane and spikes below."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.4))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
        above.plot(x, color="0.4")
        above.set_ylabel("x")
        below.plot(membrane, color="C0", linewidth=1.2)
        at = spikes.nonzero().flatten()
        below.scatter(at, membrane[at], color="C1", s=14, zorder=3)
        if threshold:
            below.axhline(1.0, color="0.5", linestyle="--", linewidth=1)
        below.set(xlabel="timestep", ylabel="u", xlim=(0, len(x)))
        figure.align_ylabels()
    return figure


def surrogates(curves: Sequence[bs.Surrogate]) -> Figure:
    """The derivatives on the left, the smooth steps on the right; the first one is solid."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.6))
        axes = figure.subplots(1, 2)
        bs.plot.surrogate(*curves, ax=axes[0])
        bs.plot.surrogate(*curves, primitive=True, ax=axes[1])
        for ax in axes:
            for line in ax.lines[1 : len(curves)]:
                line.set(linestyle=":", linewidth=1.4)
        axes[0].legend(frameon=False, fontsize="small", loc="upper left")
        axes[1].get_legend().remove()
        figure.tight_layout()
    return figure


def network(model: nn.Module, rows: Sequence[Row]) -> Figure:
    """A box per layer, from the input on the left: its height is the side of its output, and its
    width the number of channels, both on a scale of logarithms. Arcs pass over residual blocks."""
    shown = [row for row in rows if row.shape and "Norm" not in row.kind and row.kind != "Flatten"]
    boxes, x = [], 0.0
    for row in shown:
        width, height = _size(row)
        boxes.append((x, width, height))
        x += width + 0.25
    top = max(height for *_, height in boxes) / 2
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 2.0))
        ax = figure.subplots()
        for row, (left, width, height) in zip(shown, boxes):
            colour = _colour(model, row)
            ax.add_patch(Rectangle((left, -height / 2), width, height, facecolor=colour, lw=0))
        for first, last, height in _blocks(model, shown, boxes):
            _arc(ax, first, last, height / 2)
        _label_stages(ax, shown, boxes, -top - 0.3, x)
        ax.set(xlim=(-0.2, max(x, 12.0)), ylim=(-top - 2.5, top + 3.5))
        ax.axis("off")
        for label, colour in LEGEND.items():
            ax.scatter([], [], marker="s", color=colour, label=label)
        ax.legend(loc="upper left", ncols=3, frameon=False)
        figure.subplots_adjust(0, 0, 1, 1)
    return figure


def _blocks(
    model: nn.Module, rows: Sequence[Row], boxes: Sequence[tuple[float, float, float]]
) -> list[list[float]]:
    """Where each residual block begins and ends, and its height."""
    spans: dict[str, list[float]] = {}
    for row, (left, width, height) in zip(rows, boxes):
        name = row.name.rpartition(".")[0]
        if name and hasattr(model.get_submodule(name), "downsample"):
            first, _, highest = spans.get(name, [left, left, height])
            spans[name] = [first, left + width, max(highest, height)]
    return list(spans.values())


def _size(row: Row) -> tuple[float, float]:
    shape = row.shape or (1,)
    side = math.sqrt(math.prod(shape[1:]))
    return 0.12 * math.log2(shape[0] + 1), 0.6 + 1.1 * math.log2(side + 1)


def _colour(model: nn.Module, row: Row) -> str:
    module = model.get_submodule(row.name)
    if isinstance(module, bs.LIF):
        return NEURON
    return SYNAPSE if getattr(module, "weight", None) is not None else OTHER


def _arc(ax: Axes, first: float, last: float, height: float) -> None:
    ends = {"posA": (first - 0.1, height), "posB": (last + 0.1, height)}
    style = {"arrowstyle": "-|>", "mutation_scale": 6, "color": "0.4", "lw": 0.8}
    ax.add_patch(FancyArrowPatch(**ends, connectionstyle="arc3,rad=-0.4", **style))


def _label_stages(
    ax: Axes,
    rows: Sequence[Row],
    boxes: Sequence[tuple[float, float, float]],
    y: float,
    length: float,
) -> None:
    """Writes the shape of the output below the first layer that has it, where there is room."""
    before, free = None, -1.0
    for row, (left, width, _) in zip(rows, boxes):
        if row.shape != before and left >= free:
            text = "×".join(map(str, row.shape or ()))
            ax.text(left + width / 2, y, text, fontsize=7, rotation=35, ha="right", va="top")
            free = left + max(length, 12.0) / 18
        before = row.shape
