"""Text, numbers, tables and pages as HTML; it knows nothing of runs."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ReportError, RunError
from ..system.files import write_atomic

MAX_SAMPLES, MAX_RASTERS, MAX_STEPS, MAX_FRAMES, MAX_CLASSES, MAX_PIXELS = 6, 6, 12, 8, 20, 128
MAX_LINES, MAX_LAYERS, MAX_NUMBER = 100, 1000, 1e30


def escape(value: object) -> str:
    return html.escape(str(value))


def as_percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u202f%" if math.isfinite(value) else "–"


def tenths(value: float) -> str:
    return count(value) if not abs(value) < 1000 else f"{value:.1f}"


def plain_number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def three_digits(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else "–"


def seconds(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f}\u202fs"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}\u202fh {minutes:02d}\u202fmin"
        if hours
        else f"{minutes}\u202fmin {seconds:02d}\u202fs"
    )


def html_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = ""
) -> str:
    """A table of ready HTML cells, the first of each row its heading, that scrolls inside its own frame."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def figure(name: str, title: str, picture: str, below: str = "") -> str:
    return f'<figure id="fig-{name}"><figcaption>{title}</figcaption>{picture}{below}</figure>'


def time_groups(steps: int, most: int) -> list[np.ndarray]:
    """Timesteps 0..steps-1 in at most `most` groups of neighbours, equal but for the last."""
    size = math.ceil(steps / most)
    return [np.arange(start, min(start + size, steps)) for start in range(0, steps, size or 1)]


def columns(groups: Sequence[np.ndarray]) -> str:
    """The style that gives each group its share of the time axis."""
    return (
        f'style="grid-template-columns:{" ".join(f"minmax(0,{len(group)}fr)" for group in groups)}"'
    )


def group_names(groups: Sequence[np.ndarray]) -> list[str]:
    return [f"{g[0] + 1}" if len(g) == 1 else f"{g[0] + 1}–{g[-1] + 1}" for g in groups]


def heat_cell(share: float, text: str, kind: str = "heat") -> str:
    return f'<td class="{kind}" style="--v:{100 * min(max(share, 0), 1):.0f}%">{text}</td>'


class Section(NamedTuple):
    name: str
    title: str
    text: str
    body: str

    def html(self) -> str:
        title = f'<h2 id="{self.name}-title">{self.title}</h2>'
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-title"><div class="say">{title}<p>{self.text}</p></div>'
            f'<div class="show">{self.body}</div></section>'
        )


def grid(*figures: str) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if any(figures) else ""


def tile_row(items: Iterable[tuple[str, str, str]]) -> str:
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in items
    )
    return f'<dl class="tiles">{tiles}</dl>'


def joules(pico: float) -> str:
    if not math.isfinite(pico):
        return "–"
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if pico >= size:
            return f"{pico / size:.3g}\u202f{unit}"
    return f"{pico:.3g}\u202fpJ"


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">"""


def render_page(title: str, body: str) -> str:
    css = Path(__file__).with_name("report.css").read_text("utf-8")
    return f"{HEAD}<title>{escape(title)}</title><style>{css}</style></head>\n<body><main>{body}</main></body></html>\n"


def write_page(path: Path, page: str) -> Path:
    """A reader sees the old page or the new one, never half."""
    try:
        write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))
    except RunError as error:
        raise ReportError(str(error)) from None
    return path
