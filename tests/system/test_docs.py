"""The Markdown files: links have targets, and code files that pages mention exist."""

import re

import pytest
from helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# pages about the past may mention files that no longer exist
HISTORY = {ROOT / "LOG.md", ROOT / "docs/simulated-events.md", *ROOT.glob("docs/results/*.md")}


def without_blocks(page):
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page):
    """GitHub's anchors for the headings, which are unique on our pages."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.M)
    return [re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings]


def broken_links(page):
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if link.startswith(("https:", "http:", "mailto:")):
            continue
        if not target.exists():
            yield f"{link}: no such file"
        elif anchor and anchor not in anchors(target):
            yield f"{link}: no such heading"


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    assert list(broken_links(page)) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`\n[a](#a-b) [b](#c) [c](none.md) [d](page.md#a-b) `[e](none.md)`\n")
    assert list(broken_links(page)) == ["#c: no such heading", "none.md: no such file"]


@pytest.mark.parametrize("page", sorted(set(PAGES) - HISTORY), ids=name)
def test_code_files_exist(page):
    """Paths relative to the repository or the package, or names of test files."""
    named = re.findall(r"[\w/]+\.(?:py|c|h|sh)\b", page.read_text("utf-8"))
    files = {f for f in named if not (ROOT / f).exists() | (ROOT / "src/backspike" / f).exists()}
    assert [f for f in sorted(files) if not list(ROOT.glob(f"tests/**/{f}"))] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
