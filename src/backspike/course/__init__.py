"""The course: six chapters as Jupyter notebooks, from one neuron to a network exported for a chip.

The chapters are text files in this folder, in the notebook format of MyST, so that changes can be
read and the documentation can execute them. `write` turns them into notebooks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..system.files import cannot_write, write_atomic

CHAPTERS = tuple(sorted(Path(__file__).parent.glob("*.md")))
SOLUTION = "solution"  # the tag of cells that solve an exercise

_FRONT = re.compile(r"\A---\n.*?\n---\n", re.S)
_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(?::tags: \[([^\]\n]*)\]\n)?(.*?)\n```$", re.M | re.S)
_INSTALLED = """# on a hosted notebook, install the library first
import importlib.util

if importlib.util.find_spec("backspike") is None:
    raise SystemExit("install backspike first: docs/install.md says how")"""


def cells(text: str) -> list[tuple[str, str, list[str]]]:
    """The cells of a chapter: kind ("markdown" or "code"), source and tags."""
    found: list[tuple[str, str, list[str]]] = []
    body, end = _FRONT.sub("", text), 0
    for match in _CELL.finditer(body):
        found.append(("markdown", body[end : match.start()].strip(), []))
        found.append(("code", match[2], re.findall(r"[\w-]+", match[1] or "")))
        end = match.end()
    found.append(("markdown", body[end:].strip(), []))
    return [cell for cell in found if cell[1]]


def notebook(text: str, solutions: bool = False) -> dict[str, Any]:
    """A chapter as a Jupyter notebook (nbformat 4.5), not yet run.

    The first cell says so where the library is missing. Without `solutions`, the cells that
    solve an exercise are left to the reader; with them, they are folded.
    """
    made: list[dict[str, Any]] = []
    for kind, source, tags in [("code", _INSTALLED, []), *cells(text)]:
        metadata: dict[str, Any] = {"tags": tags} if tags else {}
        if SOLUTION in tags and not solutions:
            source, metadata = "# your code", {}
        elif SOLUTION in tags:
            metadata["jupyter"] = {"source_hidden": True}
        cell = {"id": f"cell-{len(made)}", "cell_type": kind, "metadata": metadata}
        cell["source"] = source.splitlines(keepends=True)
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write(folder: str | Path, solutions: bool = False, force: bool = False) -> list[Path]:
    """Write the chapters as `.ipynb` files into a folder and return their paths.

    A notebook that is there already is left as it is, unless `force`: it may be a reader's work.
    Raises RunError if the folder cannot be written.
    """
    folder, paths = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cannot_write(folder, e) from e
    for chapter in CHAPTERS:
        path = folder / f"{chapter.stem}.ipynb"
        paths.append(path)
        if force or not path.exists():
            made = notebook(chapter.read_text("utf-8"), solutions)
            write_atomic(path, (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode())
    return paths
