"""Charts as inline SVG. Colours are CSS variables, so one drawing serves light and dark mode.

Strings from a run never reach matplotlib, which only draws axes, lines and numbers.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from .format import as_percent, plain_number
from .page import TEMPLATES, Figure, Image, Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MAX_LINES = 100
_COLOURS = ("ink", "soft", "rule", "train", "valid", "hist", *(f"run{i}" for i in range(8)))


def colour(name: str) -> str:
    """A placeholder colour for matplotlib; `svg` replaces it by the CSS variable of this name."""
    return f"#0100{_COLOURS.index(name):02x}"


def ramp(index: int, count: int) -> str:
    """A placeholder for the colour of item `index` in a sequence: timesteps, or layers by depth."""
    return f"#0101{round(100 * index / max(count - 1, 1)):02x}"


def css(placeholder: str) -> str:
    """The CSS colour of a placeholder made by `colour` or `ramp`."""
    value = int(placeholder[-2:], 16)
    if placeholder[3:5] == "00":
        return f"var(--{_COLOURS[value]})"
    return f"color-mix(in oklch, var(--late) {value}%, var(--early))"


def draw_svg(name: str, label: str, plot: Callable[[Axes], None], left: float = 0.125) -> Markup:
    """An inline SVG of one pair of axes, 360 wide, so that text is legible on a phone.

    label: text for screen readers. left: share of the width left of the axes, more if the labels
    need it.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Drawing

    ink, soft, rule = map(colour, ("ink", "soft", "rule"))
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "text.usetex": False}
    style |= {"font.family": "sans-serif", "font.size": 11.5, "text.color": ink}
    style |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), soft)
    style |= dict.fromkeys(("axes.edgecolor", "grid.color"), rule)
    style |= {"grid.linewidth": 0.8, "axes.facecolor": "none"}
    style |= {f"axes.spines.{side}": False for side in ("top", "right", "left")}
    style |= {"xtick.major.size": 3, "ytick.major.size": 0, "axes.axisbelow": True}
    with rc_context(style):  # type: ignore[arg-type, unused-ignore]
        drawing = Drawing(figsize=(5, 3.1), facecolor="none")
        FigureCanvasSVG(drawing)
        ax = drawing.add_axes((left, 0.17, 0.985 - left, 0.8))
        plot(ax)
        _fit_labels(ax)
        return svg(drawing, label)


def _fit_labels(ax: Axes) -> None:
    """Moves the left edge of the axes to the right if the labels of the y axis would be cut off."""
    box = ax.get_tightbbox()
    outside = 0.005 - (box.x0 / ax.figure.bbox.width if box else math.inf)
    if outside > 0:
        left, bottom, width, height = ax.get_position().bounds
        ax.set_position((left + outside, bottom, width - outside, height))


def svg(drawing: Drawing, label: str) -> Markup:
    """A matplotlib figure as inline SVG, the same bytes every time."""
    buffer = io.StringIO()
    unsigned: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawing.savefig(buffer, format="svg", metadata=unsigned)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.findall(r'viewBox="([^"]*)"', text)[0]
    body = text[text.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"#010[01][0-9a-f]{2}", lambda match: css(match[0]), body)
    body = re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->", "", body, flags=re.S))
    # the only HTML that is trusted: matplotlib escapes its texts, `format` escapes the label
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}">').format(label, box)
    return head + Markup(body)


class Line(NamedTuple):
    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dashed: bool = False


def draw_chart(
    name: str,
    title: str,
    lines: Sequence[Line],
    xlabel: str,
    percent: bool = False,
    mark: float = math.nan,
    log: bool = False,
) -> Figure | None:
    """A line chart; None if no line has a finite value.

    percent: values are shares. mark: the best epoch, drawn as a vertical line. log: logarithmic
    y axis.
    """
    if log:
        lines = [line._replace(y=np.where(line.y > 0, line.y, math.nan)) for line in lines]
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return None
    lines = lines[:: math.ceil(len(lines) / MAX_LINES)]
    write = as_percent if percent else plain_number

    def plot(ax: Axes) -> None:
        if math.isfinite(mark):
            ax.axvline(mark, color=colour("soft"), linewidth=1, linestyle=(0, (2, 3)))
        for line in lines:
            keep = slice(None, None, math.ceil(len(line.x) / 400))
            dots = "o" if np.isfinite(line.y).sum() <= 20 else ""
            style = (0, (4, 2)) if line.dashed else "-"
            look: dict[str, Any] = {"color": line.colour, "linestyle": style, "marker": dots}
            ax.plot(line.x[keep], line.y[keep], **look, linewidth=1.8, markersize=3.5)
        finish(ax, xlabel, percent, log)

    summary = "; ".join(f"{line.label}: {span(line.y, write)}" for line in lines[:12])
    keys = legend([Key(n.label, css(n.colour), "dashed" * n.dashed) for n in lines])
    if math.isfinite(mark):
        keys.append(Key(f"best validation epoch: {mark:.0f}", style="upright"))
    return Figure(name, title, draw_svg(name, f"{title}. {summary}", plot), keys)


def span(y: np.ndarray, write: Callable[[float], str]) -> str:
    known = y[np.isfinite(y)]
    return f"{write(known[0])} at the start, {write(known[-1])} at the end"


def finish(ax: Axes, xlabel: str, percent: bool, log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ax.set_xlabel(xlabel)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(
        MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
    )
    if log:
        shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
        decades = np.log10(shown[np.isfinite(shown)])
        ax.set_yscale("log")
        # whole powers of ten, so that at least two have a label
        ax.set_ylim(10 ** math.floor(decades.min()), 10 ** math.ceil(decades.max() + 1e-6))
        ax.yaxis.set_major_locator(LogLocator(numticks=6))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(
            FuncFormatter(
                lambda value, _: f"{value:g}" if 0.01 <= value <= 1000 else f"{value:.0e}"
            )
        )
        return
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if percent:
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.01), bottom=max(ax.get_ylim()[0], -0.01))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}\u202f%"))


def legend(keys: Sequence[Key]) -> list[Key]:
    """The keys; of more than twelve, only the first, the middle and the last."""
    return list(keys) if len(keys) <= 12 else [keys[0], keys[len(keys) // 2], keys[-1]]


def image(pixels: np.ndarray, alt: str, style: str = "") -> Image:
    """A picture from RGBA pixels `[H, W, 4]` uint8, shown without smoothing."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    unsigned: dict[str, Any] = {"Software": None}
    imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata=unsigned)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Image(data, pixels.shape[1], pixels.shape[0], alt, style)


class Picture(NamedTuple):
    """One pair of axes, as a figure of a page or as an SVG file.

    lines: text and colour number of the legend entries. summary: the values, for screen readers.
    """

    name: str
    title: str
    lines: Sequence[tuple[str, int]]
    plot: Callable[[Axes], None]
    summary: str = ""

    def figure(self) -> Figure:
        """The figure for a page, with an HTML legend."""
        drawn = draw_svg(self.name, f"{self.title}. {self.summary}", self.plot)
        keys = legend([Key(text, css(ink(number))) for text, number in self.lines])
        return Figure(self.name, self.title, drawn, keys if len(keys) > 1 else ())

    def file(self) -> bytes:
        """A stand-alone SVG file in the light colours, with the legend inside."""
        from matplotlib.lines import Line2D

        def plot(ax: Axes) -> None:
            self.plot(ax)
            ax.set_title(math_free(self.title), fontsize=11.5, loc="left")
            left, bottom, width, height = ax.get_position().bounds
            ax.set_position((left, bottom, width, height - 0.06))  # the title is above the axes
            handles = [
                Line2D([], [], color=ink(number), label=math_free(text))
                for text, number in self.lines
            ]
            if len(handles) > 1:
                ax.legend(handles=handles, fontsize=9, frameon=False)

        css = (TEMPLATES / "report.css").read_text("utf-8")
        light = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", css[: css.index("@media")]))
        svg = str(draw_svg(self.name, self.title, plot))
        svg = re.sub(r"var\(--([a-z0-9-]+)\)", lambda match: light[match[1]], svg)
        spaces = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        )
        return svg.replace("<svg", spaces, 1).encode()


def ink(number: int) -> str:
    return colour(f"run{number % 8}")


def axes(
    ax: Axes, xlabel: str, log_x: bool = False, percent: bool = False, whole: bool = False
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    ax.set_xlabel(xlabel)
    ax.grid(axis="y")
    if log_x:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole, min_n_ticks=1))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if percent:
        percent_axis(ax.yaxis)


def percent_axis(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))


def math_free(text: str) -> str:
    return text.replace("$", r"\$")
