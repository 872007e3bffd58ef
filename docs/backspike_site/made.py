"""The directive `made`: the text of a page, made by a function when the site is built.

    ```{made} gallery.neurons
    ```

calls `neurons(folder)` of `gallery.py` in this folder and reads what it returns as Markdown.
`folder` is where it may write pictures, which its text names as `/_made/NAME.svg`. Further words
are passed on.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Made(SphinxDirective):
    """Calls a function of this folder and inserts the Markdown that it returns."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        module, _, function = self.arguments[0].partition(".")
        folder = Path(self.env.srcdir) / "_made"
        folder.mkdir(exist_ok=True)
        make = getattr(import_module(f"backspike_site.{module}"), function)
        text = make(folder, *self.arguments[1:])
        self.env.note_reread()  # made anew at every build
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("made", Made)
    return {"parallel_read_safe": True}
