"""`bs.fit` shows its progress where somebody can see it."""

import sys

import pytest
from helpers.training import tiny

import backspike as bs


@pytest.fixture
def notebook(monkeypatch):
    """Without ipywidgets, so that no bar can move."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


def run(folder, **options):
    bs.fit(tiny(epochs=2), folder, report=False, **options)


def test_a_notebook_gets_a_line_per_epoch(tmp_path, notebook, capsys):
    run(tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines if line.startswith("epoch")] == [
        "epoch   1  ",
        "epoch   2  ",
    ]


def test_a_program_prints_nothing(tmp_path, capsys):
    run(tmp_path / "run")
    assert capsys.readouterr().out == ""


def test_progress_can_be_asked_for_and_switched_off(tmp_path, notebook, capsys):
    run(tmp_path / "quiet", progress=False)
    events = []
    run(tmp_path / "own", listen=events.append)
    assert capsys.readouterr().out == ""
    assert events
    run(tmp_path / "both", listen=events.append, progress=True)
    assert "epoch   2" in capsys.readouterr().out


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run(tmp_path / "run")
    text = capsys.readouterr().out
    assert "epoch 2/2" in text
    assert "100%" in text
