"""Tables as Markdown, LaTeX, text, for a terminal and as HTML."""

from rich.console import Console

from backspike.report.page import Page, Section
from backspike.system.table import Table, left, right

TABLE = Table([*left("a_b"), *right("50 %", format=lambda x: f"{x:.1f}")], [["x|[y]", 2]])


def test_markdown():
    assert TABLE.to_markdown() == "| a_b | 50 % |\n| --- | ---: |\n| x\\|[y] | 2.0 |\n"
    noted = Table(TABLE.columns, [], notes=["one", "two"])
    assert noted.to_markdown().endswith("| ---: |\n\n- one\n- two\n")


def test_latex_is_escaped():
    tex = Table(
        [*left("a_b"), *right("50 %")], [["x^2 & {y}", "\\$~#"]], notes=["a\nnote"]
    ).to_latex()
    assert tex.startswith("% a note\n")
    assert r"\begin{tabular}{lr}" in tex
    assert r"a\_b & 50 \% \\" in tex
    assert r"x\^{}2 \& \{y\} & \textbackslash{}\$\~{}\# \\" in tex


def test_text():
    assert TABLE.to_text() == "a_b    50 %\nx|[y]   2.0"
    assert Table(left("", ""), [["a", "b"], ["cc", ""]]).to_text() == "a   b\ncc"


def test_brackets_are_literal_on_a_terminal():
    shown = Table(left("ms [low]"), [["[red]1"]], "a [title]", ["[bold]note"]).to_rich()
    console = Console(width=40)
    with console.capture() as written:
        console.print(shown)
    for text in ("ms [low]", "[red]1", "a [title]", "[bold]note"):
        assert text in written.get()


def test_html_is_escaped():
    hostile = "<script>{{ 7 * 7 }}'\"&"
    table = Table(left(hostile), [[hostile]], hostile, name="t")
    page = Page("test", hostile, hostile, [Section("s", hostile, hostile, [table])]).html().decode()
    assert "<script>" not in page
    assert page.count("&lt;script&gt;{{ 7 * 7 }}&#39;&#34;&amp;") == 7
    assert '<div class="scroll" id="fig-t" role="region"' in page
    assert '<table class="pairs">' in page
