"""Fine-tuning: weights of another run, a new head, layers that do not learn."""

import json

import numpy as np
import pytest
import torch
from helpers.training import Own, Points, Stop, fit, own, same, stop_after, tiny, weights

import backspike as bs
from backspike import train
from backspike.cli import main
from backspike.errors import RunError
from backspike.run import Run
from backspike.train.start_from import freeze

HALF = 5
OTHER = {"model": "ConvNet('7-P-9-P', size=8)", "model.num_classes": HALF}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    fit(tiny(), folder)
    return folder


def half(part):
    """The samples of the first five classes."""
    return part.take(np.flatnonzero(part.y < HALF))


def stored(run):
    return bs.load(run).model.state_dict()


def first_event(run, kind):
    return next(e for e in Run.open(run).log() if e["event"] == kind)


def started(recipe):
    from backspike.train import setup

    return setup.set_up(recipe).network.model.state_dict()


def test_weights_are_loaded_by_name(source):
    network = started(tiny(start_from=str(source), seed=5))
    assert same(network, stored(source))
    assert not same(started(tiny(seed=5)), stored(source))


def test_a_head_for_other_classes_is_new_and_said_to_be(tmp_path, source):
    sets = bs.data.load("digits", limit=120)
    recipe = tiny(start_from=str(source), **{"model.num_classes": HALF})
    heard = []
    result = fit(
        recipe,
        tmp_path / "run",
        train=half(sets.train),
        validation=half(sets.validation),
        test=half(sets.test),
        listen=heard.append,
    )
    event = first_event(tmp_path / "run", "weights")
    assert event in heard
    assert event["new"] == ["classifier.1.weight", "classifier.1.bias"]
    assert event["unused"] == []
    assert "features.0.0.weight" in event["loaded"]
    assert "classifier.1.weight (here [5, 32], there [10, 32])" in event["text"]
    assert 0 <= result.test_accuracy <= 1


def test_a_network_of_the_package_and_a_deeper_model_can_be_used():
    network = bs.load("digits")
    layout = Run.find("digits").recipe().model
    recipe = Run.find("digits").recipe().replace({"start_from": "digits"})
    assert same(
        started(recipe), {k[6:]: v for k, v in network.state_dict().items() if "model" in k}
    )
    deeper = recipe.replace({"model": type(layout)(layout.layout + "-64", size=layout.size)})
    assert deeper.model != layout
    assert started(deeper)


def test_a_source_that_does_not_fit_is_refused_before_the_folder_is_made(tmp_path, source):
    for start_from, words in (
        (str(tmp_path / "nothing"), "neither a run folder nor a network"),
        (str(source), "no weight of .* has the name and shape"),
    ):
        with pytest.raises(RunError, match=words):
            fit(tiny(start_from=start_from, **OTHER), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_or_unfinished_source_is_refused(tmp_path, source):
    with pytest.raises(Stop):
        fit(tiny(), tmp_path / "unfinished", listen=stop_after(3))
    with pytest.raises(RunError, match=r"has no model\.safetensors"):
        fit(tiny(start_from=str(tmp_path / "unfinished")), tmp_path / "run")
    (tmp_path / "unfinished" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        fit(tiny(start_from=str(tmp_path / "unfinished")), tmp_path / "run")


@pytest.mark.parametrize("batches", [1, 6])
def test_fine_tuning_resumes_exactly_even_without_its_source(tmp_path, batches):
    fit(tiny(epochs=1), tmp_path / "source")
    recipe = tiny(
        start_from=str(tmp_path / "source"), freeze="features.0", checkpoint_seconds=0, seed=3
    )
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(batches))
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


# ---- frozen layers -------------------------------------------------------------------------------


def test_frozen_layers_do_not_change_nor_do_their_running_statistics(tmp_path, source):
    fit(tiny(start_from=str(source), freeze="features.0"), tmp_path / "run")
    before, after = stored(source), stored(tmp_path / "run")
    frozen = [k for k in before if k.startswith("features.0.")]
    assert "features.0.1.running_var" in frozen
    assert same({k: before[k] for k in frozen}, {k: after[k] for k in frozen})
    for name in ("features.3.0.weight", "features.3.1.running_mean", "classifier.1.weight"):
        assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("names", "frozen"),
    [
        ("", set()),
        ("a.weight", {"a.weight"}),
        ("a", {"a.weight", "a.bias"}),
        ("*.bias", {"a.bias", "inner.b.bias", "inner.n.bias", "last.bias"}),
        ("a, inner.*", {"a.weight", "a.bias", "inner.b.weight", "inner.b.bias", "inner.n.weight"}
         | {"inner.n.bias"}),
        ("inn?r", {"inner.b.weight", "inner.b.bias", "inner.n.weight", "inner.n.bias"}),
    ],
)  # fmt: skip
def test_patterns_name_parameters_and_layers(names, frozen):
    nn = torch.nn
    inner = nn.ModuleDict({"b": nn.Linear(2, 2), "n": nn.BatchNorm1d(2)})
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "inner": inner, "last": nn.Linear(2, 2)})
    norms = freeze(model, names)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    # a layer of which only the bias is named keeps its statistics moving
    assert norms == ([inner["n"]] if "inn" in names else [])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("feature", "'feature' names nothing that learns; layers: features.0.0"),
        ("features.*,classifier*", "leaves nothing to learn"),
        ("features.2", "'features.2' names nothing"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(tmp_path, names, words):
    with pytest.raises(RunError, match=words):
        fit(tiny(freeze=names), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_ones_own_is_fine_tuned(tmp_path):
    torch.manual_seed(0)
    fit(own(), tmp_path / "source", Own(), Points())
    recipe = own().replace({"start_from": str(tmp_path / "source"), "freeze": "net.0"})
    fit(recipe, tmp_path / "run", model=(tuned := Own(K=3)), train=Points())
    event = first_event(tmp_path / "run", "weights")
    assert event["loaded"] == ["net.0.0.weight", "net.0.0.bias"]
    before = bs.load(tmp_path / "source", Own()).model.net[0][0].weight
    assert torch.equal(tuned.net[0][0].weight, before)


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_line_fine_tunes(tmp_path, source, capsys):
    words = ["train", "digits", "--from", str(source), "--freeze", "features.0*"]
    small = ["--limit", "60", "--epochs", "1", "--model", "ConvNet('6-P-8-P', size=8)"]
    assert main([*words, *small, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert f"weights: 14 tensors from {source}" in out
    assert Run.open(tmp_path / "a").recipe().start_from == str(source)


def test_without_a_recipe_the_one_of_the_run_is_used(tmp_path, source, capsys):
    assert (
        main(["train", "--from", str(source), "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    )
    assert Run.open(tmp_path / "a").recipe().model == tiny().model
    assert main(["train", "--from", str(tmp_path / "no"), "--out", str(tmp_path / "b")]) == 1
    assert "neither a run folder" in capsys.readouterr().err


def test_a_run_on_own_data_does_not_name_the_recipe_to_start_with(tmp_path, capsys):
    fit(own(), tmp_path / "source", Own(), Points())
    assert main(["train", "--from", str(tmp_path / "source"), "--out", str(tmp_path / "a")]) == 2
    assert "with your own model and data; name a recipe" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_recipe_json_holds_the_fields(source, tmp_path):
    fit(tiny(start_from=str(source), freeze="features.0", epochs=1), tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "recipe.json").read_text())["fields"]
    assert (fields["start_from"], fields["freeze"]) == (str(source), "features.0")
