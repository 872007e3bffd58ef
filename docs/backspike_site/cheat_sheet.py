"""The cheat sheet as a page to print: a PDF, made from the page of the site."""

from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from weasyprint import CSS, HTML

PAGE = "moving/cheat-sheet"
STYLE = Path(__file__).with_name("cheat_sheet.css")


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the PDF beside the page. Raises ExtensionError if it is not one sheet."""
    if error or app.builder.name != "html":
        return
    page = Path(app.outdir) / f"{PAGE}.html"
    soup = BeautifulSoup(page.read_text("utf-8"), "html.parser")
    article = soup.find("article", id="furo-main-content")
    for link in article.select("a.headerlink, .screen-only"):
        link.decompose()
    body = f"<html lang='en'><title>backspike: cheat sheet</title><body>{article}</body></html>"
    made = HTML(string=body).render(stylesheets=[CSS(filename=str(STYLE))])
    if len(made.pages) != 1:
        raise ExtensionError(f"the cheat sheet has {len(made.pages)} pages; shorten {PAGE}.md")
    made.write_pdf(page.with_suffix(".pdf"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
