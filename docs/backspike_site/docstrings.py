"""Docstrings, which are written as Markdown, as the reStructuredText that autodoc reads.

Indented blocks are equations or code. Lines such as `tau: in timesteps` become a list, if they
begin with the name of an argument or attribute.
"""

import inspect
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from sphinx.application import Sphinx

PYTHON = re.compile(r"\s*(class|for|def|with|print|net\.|plan )\b")
ITEM = re.compile(r"([\w.=]+(?:, [\w.=]+)*): ")
BLOCK = ("  | ", "    ")  # how the lines of a block begin that are not joined
NAMED = re.compile(r"(Args|Raises|Returns):$")


def to_rst(lines: list[str], names: Iterable[str]) -> list[str]:
    """The lines of a docstring, as reStructuredText. names: of its arguments and attributes."""
    made: list[str] = []
    for paragraph in _paragraphs(lines):
        if named := NAMED.match(paragraph[0]):
            rest = inspect.cleandoc("\n".join(["", *paragraph[1:]])).splitlines()
            made += [f"**{named[1]}**", "", *_items(rest, None), ""]
        elif paragraph[0].startswith("    "):
            language = "python" if PYTHON.match(paragraph[0]) else "text"
            made += [f".. code-block:: {language}", "", *paragraph, ""]
        else:
            made += [*_items(paragraph, set(names)), ""]
    return made


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Splits at blank lines; blocks of code keep theirs."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            inside = found[-1] and found[-1][0].startswith("    ")
            if found[-1] and found[-1][-1] == "" and not (inside and line.startswith("    ")):
                found.append([])
            found[-1].append(line)
        elif found[-1]:
            found[-1].append("")
    while found[-1] and found[-1][-1] == "":
        found[-1].pop()
    return [_stripped(paragraph) for paragraph in found if paragraph]


def _stripped(paragraph: list[str]) -> list[str]:
    while paragraph[-1] == "":
        paragraph = paragraph[:-1]
    return paragraph


def _items(lines: list[str], names: set[str] | None) -> list[str]:
    """Lines of text; those that begin with a name and a colon become items of a list."""
    made: list[str] = []
    inside = False
    for line in lines:
        found = ITEM.match(line)
        if found and (names is None or _known(found[1], names)):
            made += ["", f"* **{found[1]}**: {line[found.end() :]}"]
            inside = True
        elif line.startswith("    ") and inside and "  " in line.strip():
            made += [*([] if made[-1].startswith(BLOCK) else [""]), f"  | {line.strip()}"]
        elif inside and made[-1].startswith(BLOCK) and line.startswith(" " * 8):
            made.append(f"    {line.strip()}")  # of the same line of the block
        elif inside and (line.startswith("    ") or not re.match(r"(Raises|Returns) ", line)):
            made += [*([""] if made[-1].startswith(BLOCK) else []), f"  {line.strip()}"]
        else:
            made += ["", line] if inside else [line]
            inside = False
    return made


def _known(text: str, names: set[str]) -> bool:
    return all(part.partition("=")[0] in names for part in text.split(", "))


def names_of(thing: Any) -> set[str]:
    """The names of the arguments of a function, or of the arguments and attributes of a class."""
    found = set(getattr(thing, "__annotations__", ())) | set(getattr(thing, "_fields", ()))
    with suppress(TypeError, ValueError):  # no signature: exceptions, properties
        found |= set(inspect.signature(thing).parameters)
    return found


def process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(list(lines), names_of(thing))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
