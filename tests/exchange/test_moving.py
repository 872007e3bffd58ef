"""The pages of docs/moving: the same weights give the same spikes in both libraries."""

import pytest
from helpers import peers
from helpers.paths import ROOT, TESTS

OF_ALL = {ROOT / "docs/moving/index.md", ROOT / "docs/moving/cheat-sheet.md"}
PAGES = sorted(set((ROOT / "docs/moving").glob("*.md")) - OF_ALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_libraries_give_the_same_spikes(page):
    found = peers.run(TESTS / "helpers/beside_page.py", page)
    assert found["differ"] == 0
    assert 0.02 < found["ours"] / found["of"] < 0.9


def test_the_index_links_every_page():
    index = (ROOT / "docs/moving/index.md").read_text()
    assert len(PAGES) == 4
    assert all(f"({page.name})" in index for page in PAGES)
