"""The code in the README and the docs runs, and so do the examples."""

import re
import runpy
import shlex
import shutil

import pytest
import torch
from helpers.paths import ROOT

import backspike as bs
from backspike.cli import main


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


BLOCKS = blocks("README.md")


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_in_the_readme_runs(code, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(code, variables)
    if "result" in variables:
        assert variables["result"].test_accuracy > 0.3
    else:
        model, readout, x, y = (variables[name] for name in ("model", "readout", "x", "y"))
        with torch.no_grad():
            answers = readout(model(x.expand(4, -1, -1, -1, -1))).argmax(1)
        assert (answers == y).float().mean() > 0.7
        assert bs.backends()[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("docs/speed-and-memory.md", "fused with BatchNorm2d 0.1 and MaxPool2d 2.0"),
        ("docs/install.md", "the fastest on this machine"),
        ("docs/sequences.md", "418 spikes in bins (100, 80)"),
        ("docs/streaming.md", "folded into 0.0"),
    ],
)
def test_code_in_the_docs_runs(page, printed, capsys):
    for code in blocks(page):
        exec(code, {})
    assert printed in capsys.readouterr().out


def test_code_about_small_helpers_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    for code in blocks("docs/small-helpers.md"):
        exec(code, {})
    assert "multiply-accumulates" in capsys.readouterr().out
    assert (tmp_path / "weights.svg").stat().st_size > 1000


@pytest.mark.parametrize("code", blocks("docs/long-sequences.md"), ids=range(2))
def test_code_about_long_sequences_runs(code):
    variables = {}
    exec(code, variables)
    assert len(variables["x"]) == 400


def test_code_about_neurons_of_ones_own_runs(capsys):
    variables = {}
    for code in blocks("docs/own-neurons.md"):
        exec(code, variables)
    shown = capsys.readouterr().out
    assert re.search("Fatigue +cpu +compiled from its equations +saves v", shown)
    assert float(shown.split()[-3]) > 3
    assert variables["recipe"]().network()


def test_code_about_neurons_for_time_runs(capsys):
    variables = {}
    for code in blocks("docs/neurons-for-time.md"):
        exec(code, variables)
    assert not variables["model"].training
    assert re.search("AdaptiveLIF .*all timesteps in one kernel", capsys.readouterr().out)


def test_code_about_own_data_runs(monkeypatch, tmp_path, capsys):
    """The blocks in turn, then the training on the recordings that the first one wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    variables = {}
    for code in blocks("docs/own-data.md"):
        exec(code, variables)
    first, second, *answers = capsys.readouterr().out.splitlines()
    assert first.startswith("('left', 'right') (")
    assert second == "14"
    assert [eval(answer)["input"] for answer in answers] == [0, 1, 2]
    (command,) = re.findall(
        r"^backspike (train .*)$", (ROOT / "docs/own-data.md").read_text(), re.M
    )
    assert main([*shlex.split(command), "--epochs", "1", "--out", "run"]) == 0
    assert main(["predict", "run", "gestures/left"]) == 0


def test_code_about_training_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    variables = {}
    for code in blocks("docs/training.md"):
        exec(code, variables)
    assert "[0.02, 0.01, 0.02, 0.01, 0.02]" in capsys.readouterr().out
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_code_about_trained_networks_runs(monkeypatch, tmp_path, capsys):
    """Each block; training is shortened, and what needs the hub or the library nir is left out."""
    monkeypatch.chdir(tmp_path)
    for code in blocks("docs/weights.md"):
        exec(code, {})
    assert "digits-dvs: digits-dvs, T = 10, " in capsys.readouterr().out
    text = (ROOT / "docs/weights.md").read_text()
    commands = re.findall(r"^backspike (?!.*(?:hf://|nir))(.*)$", text, re.M)
    assert [words.split()[0] for words in commands] == ["eval", "train", "train", "card"]
    for words in commands:
        short = ["--epochs", "1", "--limit", "120"] if words.startswith("train") else []
        assert main([*words.split(), *short]) == 0
    assert "Over 2 seeds" in (tmp_path / "runs/a/README.md").read_text()


def test_code_about_ones_own_network_runs(monkeypatch, tmp_path, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    file, in_python, arms = blocks("docs/own-network.md")
    assert file == (ROOT / "examples/own_network.py").read_text()
    assert len(file.splitlines()) <= 40
    exec(in_python, {})
    assert capsys.readouterr().out.endswith("True\n")
    variables = {}
    exec(arms, variables)
    assert variables["arms"]().recipe(variables["arms"]().arms[1]).optimizer.lr == 0.001
    text = (ROOT / "docs/own-network.md").read_text()
    commands = [words.split() for words in re.findall(r"^backspike (.*)$", text, re.M)]
    assert [words[0] for words in commands] == [
        *("train", "train", "doctor", "study"),
        *("eval", "doctor", "resume", "export"),
    ]
    for words in commands:
        short = {"train": ["--epochs=1"], "study": ["--epochs=1", "--jobs=2"]}.get(words[0], [])
        words = [w for i, w in enumerate(words) if "--epochs" not in words[max(i - 1, 0) : i + 1]]
        if words[0] == "train" and "--memory" not in words:
            shutil.rmtree("runs/mine")
        if words[-1] == "--trust" and words[0] == "export":
            pytest.importorskip("nir")
        assert main([*words, *short]) == 0, words


# test_ranks.py runs sharded.py, which needs several ranks; own_network.py is a recipe
EXAMPLES = sorted(
    set((ROOT / "examples").glob("*.py"))
    - {ROOT / "examples" / name for name in ("sharded.py", "own_network.py")}
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_run(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    accuracy = float(re.findall(r"([\d.]+) %", capsys.readouterr().out)[-1])
    assert accuracy > 97


def test_the_readme_names_every_package():
    text = (ROOT / "README.md").read_text()
    packages = [p.parent.name for p in (ROOT / "src/backspike").glob("*/__init__.py")]
    assert len(packages) > 10
    assert [name for name in packages if f"{name}/" not in text] == []


def test_the_two_commands_come_first():
    text = (ROOT / "README.md").read_text()
    first = text.split("```")[1]
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == [
        "make demo",
        "make test",
    ]
