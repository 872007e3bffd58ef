"""The trained networks of the package: small, complete, as their cards say, readable by name."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch

import backspike as bs
from backspike.cli import main
from backspike.errors import RunError
from backspike.models.shipped import WEIGHTS, folders
from backspike.run import Run

NAMES = sorted(folders())


def test_the_list_names_all_of_them():
    listed = {p.name: p for p in bs.models.pretrained()}
    assert set(listed) == {"digits", "digits-dvs", "mnist", "spoken-digits"}
    assert listed["digits"].T == 4
    assert listed["digits"].recipe == listed["digits"].data == "digits"
    assert "simulated" in listed["digits-dvs"].note
    assert all(0.75 < p.accuracy <= 1 and p.card.is_file() for p in listed.values())


def test_listing_needs_no_torch():
    code = "import sys, backspike as bs; bs.models.pretrained(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_of_them_are_below_a_megabyte():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_a_complete_run(name):
    run = Run.find(name)
    recipe = run.recipe()
    fields = run.read_json("recipe.json")["fields"]
    assert {"neuron.tau", "neuron.reset_gradient", "neuron.surrogate"} <= set(fields)
    assert {"model", "data", "T", "readout", "loss", "optimizer", "epochs", "seed"} <= set(fields)
    assert (recipe.name, recipe.precision) == (name, "float32")
    x = torch.rand(recipe.T, 2, *run_shape(name))
    assert bs.load(name)(x).shape == (2, 10)


def run_shape(name):
    shapes = {"digits": (1, 8, 8), "digits-dvs": (2, 17, 17), "mnist": (1, 28, 28)}
    return {**shapes, "spoken-digits": (80,)}[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_checksums_and_the_accuracy(name):
    (network,) = (p for p in bs.models.pretrained() if p.name == name)
    card = network.card.read_text("utf-8")
    for file in ("recipe.json", "model.safetensors"):
        content = (network.card.parent / file).read_bytes()
        assert hashlib.sha256(content).hexdigest() in card
    assert f"| {100 * network.accuracy:.2f} % |" in card
    assert "Over 3 seeds, the test accuracy is " in card
    assert "none of these runs has a higher validation accuracy" in card
    assert 'license: "apache-2.0"' in card


def check_accuracy(name):
    (network,) = (p for p in bs.models.pretrained() if p.name == name)
    result = bs.evaluate(name)
    # kernels of other processors may round otherwise and flip a sample
    assert abs(result["test_accuracy"] - network.accuracy) * result["n"] < 1.5


def test_digits_has_the_accuracy_of_its_card():
    before = {path: path.stat().st_mtime_ns for path in WEIGHTS.rglob("*")}
    check_accuracy("digits")
    assert {path: path.stat().st_mtime_ns for path in WEIGHTS.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "digits"])
def test_the_others_have_the_accuracy_of_their_cards(name):
    if name in ("mnist", "spoken-digits") and bs.data.found(name) is None:
        pytest.skip(f"needs the files of {name}")
    check_accuracy(name)


def test_a_folder_goes_before_a_network_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("digits")
    with pytest.raises(RunError, match="digits: no run folder"):
        bs.load("digits")
    for name in ("recipe.json", "model.safetensors"):
        (tmp_path / "digits" / name).write_bytes((folders()["digits-dvs"] / name).read_bytes())
    assert bs.load("digits")(torch.rand(10, 1, 2, 17, 17)).shape == (1, 10)


def test_an_unknown_name_suggests_those_of_the_package(capsys):
    assert main(["eval", "digit"]) == 1
    message = "digit is neither a run folder nor a network of this package; did you mean digits"
    assert message in capsys.readouterr().err


def test_verbs_that_read_take_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "digits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 360
    assert main(["report", "digits"]) == 0
    assert main(["report", "digits", "digits-dvs"]) == 0
    made = ["comparison.html", "report.html"]
    assert sorted(os.listdir()) == made
    capsys.readouterr()
    assert main(["resume", "digits"]) == 1
    assert "no run folder" in capsys.readouterr().err


def test_a_network_of_the_package_is_exported_to_the_current_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nir")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "digits", "--to", "nir"]) == 0
    assert os.listdir() == ["network.nir"]
