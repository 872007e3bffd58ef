"""`Table`, written as Markdown, LaTeX, text or for a terminal.

The macro `table` in `report/templates/macros.html` writes it as HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\^{}",
        "~": r"\~{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "<": "$<$",
        ">": "$>$",
    }
    | {c: "\\" + c for c in "%_&#${}"}
)


@dataclass(frozen=True)
class Column:
    """A column: its head, whether it is right-aligned, and how its cells are formatted."""

    head: Any
    right: bool = False
    format: Callable[[Any], Any] = lambda cell: cell


def left(*heads: Any) -> list[Column]:
    """Left-aligned columns."""
    return [Column(head) for head in heads]


def right(*heads: Any, format: Callable[[Any], Any] = lambda cell: cell) -> list[Column]:
    """Right-aligned columns with a common format."""
    return [Column(head, True, format) for head in heads]


@dataclass(frozen=True)
class Table:
    """A table. In HTML, `name` is its id, `style` its class, and cells may be any `Text` of a page.

    caption: shown above. notes: shown below, one per line.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    notes: Sequence[str] = ()
    name: str = ""
    style: str = ""

    def cells(self) -> list[list[Any]]:
        """The formatted rows."""
        return [[c.format(cell) for c, cell in zip(self.columns, row)] for row in self.rows]

    def lines(self) -> list[list[str]]:
        """Heads and rows as text."""
        heads = [column.head for column in self.columns]
        return [[str(cell) for cell in line] for line in (heads, *self.cells())]

    def to_markdown(self) -> str:
        """Markdown, with the notes as a list below."""
        head, *rows = ([cell.replace("|", r"\|") for cell in line] for line in self.lines())
        rule = ["---:" if column.right else "---" for column in self.columns]
        lines = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*lines, *notes, ""])

    def to_latex(self) -> str:
        """LaTeX (booktabs), with the notes as comments above."""
        head, *rows = (
            " & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in self.lines()
        )
        align = "".join("r" if column.right else "l" for column in self.columns)
        notes = [f"% {' '.join(note.split())}" for note in self.notes]
        lines = [*notes, r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{align}}}"]
        lines += [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
        return "\n".join(lines)

    def to_text(self) -> str:
        """Text with aligned columns; the line of heads is omitted if all are empty."""
        lines = self.lines()
        lines = lines if any(lines[0]) else lines[1:]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        align = [f"{'>' if c.right else '<'}{width}" for c, width in zip(self.columns, widths)]
        return "\n".join("  ".join(map(format, line, align)).rstrip() for line in lines)

    def to_rich(self) -> RichTable:
        """A table for a rich console, which fits it to the width of the terminal."""
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(
            title=Text(self.caption, "table.title"),
            caption=Text("\n".join(self.notes), "table.caption"),
            title_justify="left",
            caption_justify="left",
        )
        head, *rows = ([Text(cell) for cell in line] for line in self.lines())
        for text, column in zip(head, self.columns):
            drawn.add_column(text, justify="right" if column.right else "left")
        for row in rows:
            drawn.add_row(*row)
        return drawn
