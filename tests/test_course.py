"""The course: every chapter runs, and becomes a notebook."""

import ast
import json
import os
import subprocess
import sys

import matplotlib
import pytest
from helpers.paths import ROOT

from backspike import course
from backspike.cli import main

TEXT = """---
jupytext: {}
---

# Title

```{code-cell}
x = 1
```

Words with `code`.

```{code-cell}
:tags: [solution, hide-cell]
x = 2
y = "```"
```

```
no cell
```
"""


def test_text_is_split_into_cells():
    assert course.cells(TEXT) == [
        ("markdown", "# Title", []),
        ("code", "x = 1", []),
        ("markdown", "Words with `code`.", []),
        ("code", 'x = 2\ny = "```"', ["solution", "hide-cell"]),
        ("markdown", "```\nno cell\n```", []),
    ]


def sources(book):
    return ["".join(cell["source"]) for cell in book["cells"]]


def test_solutions_are_left_to_the_reader_or_folded():
    without, given = course.notebook(TEXT), course.notebook(TEXT, solutions=True)
    assert sources(without)[1:] == [
        *("# Title", "x = 1", "Words with `code`.", "# your code", "```\nno cell\n```")
    ]
    assert sources(given)[4] == 'x = 2\ny = "```"'
    assert given["cells"][4]["metadata"]["jupyter"] == {"source_hidden": True}
    assert "install backspike first" in sources(without)[0]


@pytest.mark.parametrize("chapter", course.CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_exercises_and_valid_code(chapter):
    text = chapter.read_text("utf-8")
    found = course.cells(text)
    assert found[0][1].startswith(f"# {chapter.name[0]}. ")
    code = [cell for cell in found if cell[0] == "code"]
    assert text.count("```{code-cell}") == len(code)
    for _, source, _ in code:
        ast.parse(source)
    assert sum("solution" in tags for *_, tags in code) >= 2
    assert not any("solution" in tags for *_, tags in code[:4])


def test_the_documentation_has_every_chapter():
    assert len(course.CHAPTERS) == 6
    index = (ROOT / "docs/course/index.md").read_text()
    for path in course.CHAPTERS:
        assert (ROOT / "docs/course" / path.name).samefile(path)
        assert f"({path.name})" in index


def test_the_verb_writes_notebooks_and_spares_a_readers_work(tmp_path, capsys):
    folder = tmp_path / "a" / "b"
    assert main(["course", str(folder)]) == 0
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"{path.stem}.ipynb" for path in course.CHAPTERS]
    first = folder / names[0]
    book = json.loads(first.read_text("utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert "# your code" in sources(book)
    first.write_text("mine")
    capsys.readouterr()
    assert main(["course", str(folder), "--solutions"]) == 0
    assert first.read_text() == "mine"
    assert f"{first}: left as it is; --force replaces it" in capsys.readouterr().out
    assert main(["course", str(folder), "--solutions", "--force", "--json"]) == 0
    assert "# your code" not in sources(json.loads(first.read_text("utf-8")))
    assert len(json.loads(capsys.readouterr().out)["notebooks"]) == 6


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["course", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert f"cannot write {tmp_path / 'file'}" in error


def test_the_verb_does_not_import_torch(tmp_path):
    code = f"""
import sys
from backspike.cli import main
main(["course", {str(tmp_path)!r}])
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=os.environ)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", course.CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_runs(chapter, monkeypatch):
    """All its cells, with the solutions, in turn; chapters draw into figures that nobody sees."""
    if chapter.name.startswith("6"):
        pytest.importorskip("nir")
    matplotlib.use("Agg")
    variables = {"__name__": "__main__"}
    try:
        for kind, source, _ in course.cells(chapter.read_text("utf-8")):
            if kind == "code":
                exec(compile(source, str(chapter), "exec"), variables)
        assert matplotlib.pyplot.get_fignums()
    finally:
        matplotlib.pyplot.close("all")
