"""One table, written as Markdown, LaTeX or text; as HTML by the macro `table` of `report/templates/macros.html`."""

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
    head: Any
    right: bool = False  # aligned
    format: Callable[[Any], Any] = lambda cell: cell


def left(*heads: Any) -> list[Column]:
    return [Column(head) for head in heads]


def right(*heads: Any, format: Callable[[Any], Any] = lambda cell: cell) -> list[Column]:
    return [Column(head, True, format) for head in heads]


@dataclass(frozen=True)
class Table:
    """name, style: id and class in HTML. There, heads and cells may hold whatever `report/page.py` has for a text."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    notes: Sequence[str] = ()
    name: str = ""
    style: str = ""

    def cells(self) -> list[list[Any]]:
        """The rows, formatted."""
        return [[c.format(cell) for c, cell in zip(self.columns, row)] for row in self.rows]

    def lines(self) -> list[list[str]]:
        """The heads and the rows, as text."""
        heads = [column.head for column in self.columns]
        return [[str(cell) for cell in line] for line in (heads, *self.cells())]

    def to_markdown(self) -> str:
        """The notes are a list below."""
        head, *rows = ([cell.replace("|", r"\|") for cell in line] for line in self.lines())
        rule = ["---:" if column.right else "---" for column in self.columns]
        lines = [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*lines, *notes, ""])

    def to_latex(self) -> str:
        """The notes are comments above."""
        head, *rows = (
            " & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in self.lines()
        )
        align = "".join("r" if column.right else "l" for column in self.columns)
        notes = [f"% {' '.join(note.split())}" for note in self.notes]
        lines = [*notes, r"% needs \usepackage{booktabs}", rf"\begin{{tabular}}{{{align}}}"]
        lines += [r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""]
        return "\n".join(lines)

    def to_text(self) -> str:
        """Two spaces between columns; without a line of heads where all are empty."""
        lines = self.lines()
        lines = lines if any(lines[0]) else lines[1:]
        widths = [max(map(len, cells)) for cells in zip(*lines)]
        align = [f"{'>' if c.right else '<'}{width}" for c, width in zip(self.columns, widths)]
        return "\n".join("  ".join(map(format, line, align)).rstrip() for line in lines)

    def to_rich(self) -> RichTable:
        """For a terminal, whose width it fits; the caption above, the notes below."""
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
