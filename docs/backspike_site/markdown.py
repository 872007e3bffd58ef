"""Pieces of Markdown."""

from collections.abc import Iterable, Sequence

ALIGN = {"l": "---", "r": "---:"}


def table(head: Sequence[str], rows: Iterable[Sequence[object]], align: str) -> str:
    """A table. align: a letter, l or r, per column."""
    lines = [head, [ALIGN[letter] for letter in align], *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def code_block(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|").replace("\n", " ")
