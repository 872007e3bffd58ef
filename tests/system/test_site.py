"""The site: it builds without warnings, and its made pages show everything and what is true."""

import hashlib
import inspect
import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch
from backspike_site import command_line, files, gallery, models, reference
from backspike_site.public_names import public_names
from helpers.paths import ROOT

from backspike.cli import VERBS, verb_parser
from backspike.data.formats.event_file import SUFFIXES
from backspike.models import NETWORKS
from backspike.models.shipped import folders
from backspike.recipes import NAMES
from backspike.surrogate import FAMILIES


def test_every_public_name_is_on_one_page_of_the_reference():
    listed = [
        n for page in reference.PAGES.values() for w in page.values() for n in reference.names(w)
    ]
    assert sorted(listed) == sorted(public_names())
    assert {n for n, v in public_names().items() if not callable(v)} == set(reference.VALUES)
    for page in reference.PAGES:
        text = (ROOT / f"docs/reference/{page}.md").read_text()
        assert f"{{made}} reference.page {page}\n" in text


def test_the_gallery_has_every_neuron():
    sections = list(reference.PAGES["neurons"].values())[:3]
    kinds = {name for words in sections for name in words.split()} - {"lif", "Output", "Neuron"}
    assert kinds == set(gallery.NEURONS)


@pytest.mark.parametrize("name", gallery.NEURONS)
def test_a_neuron_of_the_gallery_spikes_at_its_threshold(name):
    x, membrane, spikes = gallery.trace(name)
    assert len(x) == len(membrane) == len(spikes) == 200
    if name == "Integrator":
        assert spikes.sum() == 0
        return
    assert 2 <= spikes.sum() <= 100
    assert spikes[:20].sum() == 0
    if name not in ("MPBN", "PSN"):  # their threshold is that of another variable
        assert membrane[spikes == 1].min() >= 1 - 1e-6


def test_the_gallery_has_every_surrogate_network_and_recipe(tmp_path):
    shown = gallery.surrogates(tmp_path)
    assert all(f"## {kind.__name__}\n" in shown for kind in FAMILIES)
    assert all((tmp_path / f"{kind.__name__}.svg").stat().st_size > 5000 for kind in FAMILIES)
    recipes = gallery.recipes(tmp_path)
    assert all(f"| `{name}` |" in recipes for name in NAMES)
    assert "95.40 ± 0.12 % (Li et al. 2024, second-hand)" in recipes


@pytest.mark.slow
def test_the_gallery_counts_the_parameters_of_every_network(tmp_path):
    shown = gallery.network_table(tmp_path)
    gallery.networks(tmp_path)
    for kind in NETWORKS:
        model, _ = gallery.summaries()[kind]
        count = sum(p.numel() for p in model.parameters())
        assert f"[{kind.__name__}](#{kind.__name__.lower()}) |" in shown
        assert f"| {count / 1e6:.2f} M |" in shown
        assert (tmp_path / f"{kind.__name__}.svg").stat().st_size > 2000


def test_the_command_line_has_every_option(tmp_path):
    text = command_line.verbs(tmp_path)
    for verb in VERBS:
        assert f"## {verb}\n" in text
        for option in re.findall(r"(?<=\s)--[\w-]+", verb_parser(verb).format_usage()):
            assert option in text


def test_every_suffix_of_a_recording_is_described(tmp_path):
    text = files.event_formats(tmp_path)
    assert [suffix for suffix in SUFFIXES if suffix not in text] == []


@pytest.mark.parametrize("name", folders())
def test_the_table_of_models_agrees_with_their_files(name):
    (row,) = [row for row in models.rows()["shipped"] if row["name"] == name]
    weights = (folders()[name] / "model.safetensors").read_bytes()
    assert row["sha256"] == hashlib.sha256(weights).hexdigest()
    card = (folders()[name] / "README.md").read_text("utf-8")
    accuracies = dict(re.findall(r"^\| (\d+) \| ([\d.]+) % \|", card, re.M))
    values = [float(accuracy) for accuracy in accuracies.values()]
    assert row["seeds"] == sorted(map(int, accuracies)) == [0, 1, 2]
    assert row["mean"] == pytest.approx(statistics.mean(values), abs=0.01)
    assert row["std"] == pytest.approx(statistics.stdev(values), abs=0.01)
    (seed,) = re.findall(r"--seed (\d+)", row["command"])
    assert f"{row['accuracy']:.2f}" == accuracies[seed]


def test_docstrings_become_lists_and_blocks():
    docstrings = pytest.importorskip("backspike_site.docstrings", reason="needs Sphinx")
    text = """First.

        y = a x

    a: one, of
    two lines. b is not there.
    c, d: both.

    Raises ValueError always.
    """
    made = docstrings.to_rst(inspect.cleandoc(text).splitlines(), {"a", "c", "d"})
    assert re.split(r"\n\n+", "\n".join(made)) == [
        "First.",
        ".. code-block:: text",
        "    y = a x",
        "* **a**: one, of\n  two lines. b is not there.",
        "* **c, d**: both.",
        "Raises ValueError always.\n",
    ]


class Links(HTMLParser):
    """What a page refers to, and the anchors that it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script") and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(found["href"])


def broken(pages):
    """Links and files that lead nowhere. pages: path -> Links."""
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            if re.match(r"(https?|mailto|data):", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            file = (path.parent / target.partition("?")[0]).resolve() if target else path
            if not file.exists():
                yield f"{path.name}: {link}"
            elif anchor and file in pages and anchor not in pages[file].anchors:
                yield f"{path.name}: {link}: no such anchor"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs` does, with the course executed."""
    for name in ("sphinx", "furo", "myst_nb", "sphinx_design", "weasyprint", "mathjax"):
        pytest.importorskip(name, reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_the_site_is_whole(site):
    pages = {path.resolve(): Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 70
    assert list(broken(pages)) == []
    loaded = {link for page in pages.values() for link in page.loaded}
    assert [link for link in loaded if link.startswith(("http", "//"))] == []
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    assert {f"backspike.{name}" for name in public_names()} <= anchors
    for name in ("_static/mathjax/tex-chtml.js", "searchindex.js", "_downloads"):
        assert (site / name).exists()
    assert (site / "moving/cheat-sheet.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_course_was_executed(site):
    for path in (ROOT / "docs/course").glob("[1-6]*.md"):
        page = (site / "course" / f"{path.stem}.html").read_text("utf-8")
        assert page.count("cell_output") >= 3
        assert '<img alt="../_images' in page


def test_broken_links_are_found(tmp_path):
    path = (tmp_path / "a.html").resolve()
    path.write_text('<a id="x" href="#x"></a><a href="#y"></a><img src="no.png"><a href="a.html">')
    found = list(broken({path: Links(path.read_text())}))
    assert found == ["a.html: #y: no such anchor", "a.html: no.png"]


def test_the_figures_of_the_gallery_are_the_neurons_own(tmp_path):
    """The LIF of the gallery against the equation, in float64."""
    x, membrane, spikes = gallery.trace("LIF")
    v, expected = 0.0, []
    for now in x.double().tolist():
        u = 0.9 * v + now
        expected.append(u)
        v = u - 1.0 if u >= 1 else u
    assert torch.allclose(membrane.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    assert spikes.sum() == sum(u >= 1 for u in expected)
