"""Pages that are symbolic links, such as the chapters of the course, can be linked to.

Sphinx resolves links to pages, symbolic ones too, and then knows no page of that name.
"""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def note(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    for docname in env.found_docs:
        path = Path(env.doc2path(docname))
        if path.is_symlink():
            known = env.project._path_to_docname  # noqa: SLF001  Sphinx has no public way
            known[path.resolve()] = docname


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", note)
    return {"parallel_read_safe": True}
