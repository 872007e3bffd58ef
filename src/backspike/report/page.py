"""A page as plain values, and its rendering to one HTML file without scripts or network access.

All HTML is in `templates/`, where Jinja2 escapes every value.
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
    """Text in an inline element such as `code` or `b`; style: its CSS class."""

    tag: str
    text: Text
    style: str = ""


@dataclass(frozen=True)
class Key:
    """A legend entry: swatch and label. colour: a CSS colour; style: dashed, block or upright."""

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
    """A table cell with a CSS class; share: strength of its background colour, 0 to 1."""

    text: str
    style: str
    share: float | None = None


class Image(NamedTuple):
    """A base64-encoded PNG; sizes in pixels."""

    data: str
    width: int
    height: int
    alt: str
    style: str = ""


class Figure(NamedTuple):
    """A picture with its title; name: the id in the page, without "fig-"."""

    name: str
    title: Text
    picture: Any  # inline SVG from chart.svg, or an Image
    legend: Sequence[Key] = ()


class Part(NamedTuple):
    """Content of a section: a macro of `templates/macros.html` and its argument."""

    macro: str
    value: Any


class Section(NamedTuple):
    """A section of a page. Sections without a body are left out."""

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
    """`table` with a row per layer and a column per timestep (or group of them), in percent.

    values: shares from 0 to 1. more: further columns with one number per layer, by heading.
    relative: the largest share, rather than 100 %, has the full colour.
    """
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
    """One HTML page."""

    kind: str
    title: str
    heading: str
    sections: Sequence[Section]
    lead: Text = ""
    notices: Sequence[Text] = ()
    # name, value, note
    tiles: Sequence[tuple[str, str, str]] = ()
    # whether links to the sections are shown
    contents: bool = False

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


def table_html(table: Table) -> str:
    """A table as a fragment of HTML, for notebooks."""
    module: Any = _environment().get_template("macros.html").module
    return str(module.table(table))


def write_page(path: Path, page: Page) -> Path:
    """Writes a page atomically and returns its path. Raises ReportError."""
    try:
        write_atomic(path, page.html())
    except RunError as error:
        raise ReportError(str(error)) from None
    return path
