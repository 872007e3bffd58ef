"""Puts MathJax into the site: the script and the fonts that it needs, from a Python package."""

import shutil
from pathlib import Path
from typing import Any

import mathjax
from sphinx.application import Sphinx

SCRIPT = "tex-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"


def copy(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    source = Path(mathjax.__file__).parent / "static/mathjax/es5"
    target = Path(app.outdir) / "_static/mathjax"
    shutil.copytree(source / FONTS, target / FONTS, dirs_exist_ok=True)
    shutil.copy(source / SCRIPT, target)


def setup(app: Sphinx) -> dict[str, Any]:
    app.config.mathjax_path = f"mathjax/{SCRIPT}"
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True}
