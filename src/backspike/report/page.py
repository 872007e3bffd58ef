"""A page as plain values, and the one HTML file that `templates/page.html` makes of them: it needs neither network nor script.

All HTML stands in `templates/`, which escape whatever they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import ReportError, RunError
from ..system.files import write_atomic
from ..system.table import Table, right
from .format import MAX_STEPS, group_names, tenths, time_groups

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Mark:
    """A piece of a text in an element of its own, such as `code` or `b`."""

    tag: str
    text: Text
    style: str = ""


@dataclass(frozen=True)
class Key:
    """The swatch of a line or an area, and its label. colour: in CSS; style: dashed, block or upright."""

    label: str
    colour: str = ""
    style: str = ""


Text = str | Mark | Key | Sequence["str | Mark | Key"]


def code(value: object) -> Mark:
    return Mark("code", str(value))


def bold(value: object) -> Mark:
    return Mark("b", str(value))


def strong(value: object) -> Mark:
    return Mark("strong", str(value))


class Cell(NamedTuple):
    """A cell of a table with a class; share: how strong its colour is, from 0 to 1."""

    text: str
    style: str
    share: float | None = None


class Image(NamedTuple):
    """A PNG in base64. Sizes in pixels."""

    data: str
    width: int
    height: int
    alt: str
    style: str = ""


class Figure(NamedTuple):
    name: str
    title: Text
    picture: Any  # an inline SVG of chart.svg, or an Image
    legend: Sequence[Key] = ()


class Part(NamedTuple):
    """Something in a section: the macro that shows it, and what the macro is given."""

    macro: str
    value: Any


class Section(NamedTuple):
    """One without a body is left out."""

    name: str
    title: str
    text: Text = ""
    body: Sequence[Part | Table] = ()


def grid(*figures: Figure | Table | None) -> list[Part | Table]:
    shown = [figure for figure in figures if figure]
    return [Part("grid", shown)] if shown else []


def heat(share: float, text: str, style: str = "heat") -> Cell:
    return Cell(text, style, min(max(share, 0), 1))


def heat_table(
    names: Sequence[str],
    values: Sequence[Sequence[float]] | np.ndarray,
    table: Table,
    more: Mapping[str, Sequence[float]] | None = None,
    relative: bool = False,
) -> Table:
    """`table` with layers down and timesteps across, in percent. more: columns of one number per layer, by their heads;
    relative: the largest share has the full colour, and not all."""
    groups = time_groups(max(map(len, values)), MAX_STEPS)
    shares = np.array(
        [
            [np.mean([of[t] for t in group if t < len(of)] or [math.nan]) for group in groups]
            for of in values
        ]
    )
    top = (relative and np.nan_to_num(shares).max()) or 1
    rows = []
    for i, name in enumerate(names):
        cells = [heat(np.nan_to_num(s) / top, tenths(100 * s)) for s in shares[i]]
        rows.append([name, *cells, *(tenths(column[i]) for column in (more or {}).values())])
    columns = [*table.columns, *right(*group_names(groups), *(more or {}))]
    return Table(columns, rows, table.caption, name=table.name)


@dataclass(frozen=True)
class Page:
    kind: str
    title: str
    heading: str
    sections: Sequence[Section]
    lead: Text = ""
    notices: Sequence[Text] = ()
    tiles: Sequence[tuple[str, str, str]] = ()  # name, value, note
    contents: bool = False  # links to the sections

    def html(self) -> bytes:
        return (
            _environment()
            .get_template("page.html")
            .render(page=self)
            .encode("utf-8", "xmlcharrefreplace")
        )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def write_page(path: Path, page: Page) -> Path:
    """A reader sees the old page or the new one, never half."""
    try:
        write_atomic(path, page.html())
    except RunError as error:
        raise ReportError(str(error)) from None
    return path
