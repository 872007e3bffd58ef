"""All recipes: each runs on fabricated files in the official layout, or says which to get."""

import json
import re

import numpy as np
import pytest
import torch
from helpers.datasets import few_digits
from helpers.paths import TESTS
from helpers.recipes import put

import backspike as bs
from backspike import data
from backspike.cli import main
from backspike.errors import RecipeError
from backspike.models import NETWORKS
from backspike.recipes import GRADES, NAMES, Reported, Shipped
from backspike.recipes.values import TWO, Mean
from backspike.train import setup, trainer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path / "data"))


# official layouts with few samples


# of the slow networks, few run with the quick tests
SLOW = (
    "imagenet",
    "cifar10",
    "cifar10-crop-flip",
    "cifar100",
    "dvs-cifar10",
    "cifar10-resnet19",
    "cifar10-tsbp",
    "cifar10-resnet32",
    "cifar10-vgg16",
    "cifar100-resnet19",
    "n-caltech101",
    "ssc",
)
ROWS = ("-baseline", "-two", "-msg")


def timed(name):
    return (
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW or name.endswith(ROWS) else name
    )


@pytest.mark.parametrize("name", [timed(name) for name in NAMES])
def test_a_recipe_runs_two_steps_on_files_in_the_official_layout(name, tmp_path, monkeypatch):
    """Unchanged except for the number of samples per step."""
    monkeypatch.setattr("backspike.report.write", lambda run: None)
    few_digits(monkeypatch)
    recipe = bs.recipes.get(name)
    put(recipe.data, tmp_path / "data")
    seconds, _ = trainer.rehearse(
        recipe.replace({"batch_size": 2, "workers": 0}), steps=2, device="cpu"
    )
    assert len(seconds) == 2


@pytest.mark.parametrize(
    "name", [name for name, shipped in NAMES.items() if data.source(shipped.make().data).layouts]
)
def test_without_its_data_a_recipe_says_which_files_to_put_where(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", name]) == 1
    said = capsys.readouterr().err
    source = data.source(NAMES[name].make().data)
    where = f"{source.name} is not in {tmp_path / 'data'}"
    assert f"{where}; download these files from {source.home} into it" in said
    for file in source.layouts[0].files:
        assert f" {source.layouts[0].folders[0]}/{file.name}, " in said
        md5 = file.md5 or (file.archive and file.archive.md5)
        assert md5 is None or md5 in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("by", ["time", "count"])
def test_event_frames_are_cut_by_time_or_by_count(by, tmp_path):
    put("dvs-cifar10", tmp_path / "data")
    changes = {
        "by": by,
        "T": 3,
        "size": 24,
        "model": bs.models.ConvNet("4-P", in_channels=2, size=24),
    }
    recipe = bs.recipes.get("dvs-cifar10").replace({**changes, "epochs": 1, "augment": ()})
    result = bs.fit(recipe, tmp_path / "run", report=False)
    x = (
        torch.from_numpy(data.load("dvs-cifar10", None, T=3, size=24, by=by).test.x)
        .float()
        .transpose(0, 1)
    )
    with torch.no_grad():
        right = (bs.load(result.run)(x).argmax(1) == torch.arange(10)).float().mean().item()
    assert result.test_accuracy == pytest.approx(right)
    assert (
        setup.load_data(recipe).test.x.sum((2, 3, 4)).tolist()
        == x.transpose(0, 1).sum((2, 3, 4)).tolist()
    )


def test_event_frames_are_upright_or_as_the_camera_stores_them(tmp_path):
    put("dvs-cifar10", tmp_path / "data")
    recipe = bs.recipes.get("dvs-cifar10").replace({"T": 2, "size": 24, "upright": "False"})
    assert bs.Recipe.from_dict(recipe.to_dict()) == recipe
    frames = {
        kind: data.load("dvs-cifar10", T=2, size=24, upright=kind).test.x for kind in (True, False)
    }
    assert not np.array_equal(frames[True], frames[False])
    np.testing.assert_array_equal(setup.load_data(recipe).test.x, frames[False])
    np.testing.assert_array_equal(
        setup.load_data(recipe.replace({"upright": True})).test.x, frames[True]
    )
    with pytest.raises(
        data.DataError,
        match=r"^digits holds images: upright=False is for dvs-cifar10$",
    ):
        setup.load_data(bs.recipes.digits().replace({"upright": False}))


def test_spoken_digits_train_from_their_files_to_a_network_that_loads(tmp_path):
    put("shd", tmp_path / "data")
    changes = {
        "T": 5,
        "size": 35,
        "model": bs.models.MLP(20, 35, (12,), recurrent=True, dropout=0.1),
        "epochs": 1,
    }
    result = bs.fit(bs.recipes.get("shd").replace(changes), tmp_path / "run")
    x = torch.from_numpy(data.load("shd", T=5, size=35).test.x).float().transpose(0, 1)
    with torch.no_grad():
        right = (bs.load(result.run)(x).argmax(1) == torch.arange(20)).float().mean().item()
    assert result.test_accuracy == pytest.approx(right)
    assert (tmp_path / "run" / "report.html").exists()


def test_images_have_the_size_of_the_recipe(tmp_path):
    put("imagenet", tmp_path / "data")
    recipe = bs.recipes.get("imagenet")
    assert setup.load_data(recipe).train.x.shape[1:] == (3, 224, 224)
    assert setup.load_data(recipe.replace({"size": 32})).train.x.shape[1:] == (3, 32, 32)


def test_options_of_event_sets_are_refused_for_images(tmp_path):
    for changes in ({"by": "count"}, {"size": 4}):
        with pytest.raises(data.DataError, match="digits holds images"):
            setup.load_data(bs.recipes.digits().replace(changes))
    with pytest.raises(RecipeError, match="by must be time or count"):
        bs.recipes.digits().replace({"by": "events"})


# the list


def test_every_recipe_has_its_own_name_and_fits_its_data():
    for name, shipped in NAMES.items():
        recipe = shipped.make()
        source = data.source(recipe.data)
        assert recipe.name == name
        assert isinstance(recipe.model, NETWORKS)
        assert recipe.model.num_classes == source.num_classes
        C, H, W = source.shape
        inputs = {"events": C if H > 1 else W, "images": C, "sequences": C * H * W // recipe.T}
        assert recipe.model.in_channels == inputs[source.kind]
        assert shipped.about.endswith(".")


def test_the_rows_of_the_ablation_differ_only_in_mask_and_readout():
    for name in ("dvs-cifar10", "dvs-cifar10-resnet18", "cifar100-resnet18"):
        both, base, two, msg = (
            bs.recipes.get(name + row) for row in ("", "-baseline", "-two", "-msg")
        )
        masked, bare = bs.Masked(bs.Triangle(alpha=2.0), p=0.5), bs.Triangle(alpha=2.0)
        parts = [(r.neuron.surrogate, r.readout) for r in (both, base, two, msg)]
        assert parts == [(masked, TWO()), (bare, Mean()), (bare, TWO()), (masked, Mean())]
        for row in (base, two, msg):
            assert row.replace({"name": name, "neuron.surrogate": masked, "readout": TWO()}) == both


# network, T and the accuracy in % from the tables of the papers
TABLE = [
    ("cifar10-crop-flip", "CIFARNet", 4, 94.30, 0.22),
    ("cifar10", "CIFARNet", 4, 95.40, 0.12),
    ("cifar100", "CIFARNet", 4, 77.48, 0.14),
    ("imagenet", "SEWResNet34", 4, 67.46, None),
    ("dvs-cifar10-resnet18", "ResNet18", 10, 79.35, 0.34),
    ("dvs-cifar10", "VGGSNN", 10, 83.97, 0.12),
    ("n-caltech101-resnet18", "ResNet18", 10, 70.81, 0.31),
    ("n-caltech101", "VGGSNN", 10, 77.70, 0.15),
    ("cifar100-resnet18-baseline", "ResNet18", 4, 68.79, None),
    ("cifar100-resnet18-two", "ResNet18", 4, 68.98, None),
    ("cifar100-resnet18-msg", "ResNet18", 4, 69.08, None),
    ("cifar100-resnet18", "ResNet18", 4, 69.21, None),
    ("dvs-cifar10-resnet18-baseline", "ResNet18", 10, 72.90, None),
    ("dvs-cifar10-resnet18-two", "ResNet18", 10, 74.40, None),
    ("dvs-cifar10-resnet18-msg", "ResNet18", 10, 78.30, None),
    ("dvs-cifar10-baseline", "VGGSNN", 10, 82.70, None),
    ("dvs-cifar10-two", "VGGSNN", 10, 83.20, None),
    ("dvs-cifar10-msg", "VGGSNN", 10, 83.30, None),
    ("nmnist-tsbp", "ConvNet", 30, 99.29, None),
    ("mnist-tsbp", "ConvNet", 5, 99.49, None),
    ("cifar10-tsbp", "ConvNet", 5, 88.96, None),
    ("cifar10-resnet19", "ResNet19", 6, 95.35, None),
    ("cifar100-resnet19", "ResNet19", 4, 75.98, None),
]


@pytest.mark.parametrize(("name", "network", "T", "accuracy", "spread"), TABLE)
def test_recipes_match_the_tables_of_the_papers(name, network, T, accuracy, spread):
    recipe, reported = NAMES[name].make(), NAMES[name].reported
    assert (type(recipe.model).__name__, recipe.T) == (network, T)
    assert (reported.accuracy, reported.spread) == (accuracy, spread)


def test_every_reported_accuracy_is_in_the_table():
    assert {name for name, shipped in NAMES.items() if shipped.reported} == {
        row[0] for row in TABLE
    }


def test_a_reported_accuracy_names_its_source():
    assert (
        str(Reported(95.4, 0.12, "Li et al. 2024"))
        == "95.40 ± 0.12 % (Li et al. 2024, second-hand)"
    )
    assert str(Reported(67.46, None, "X", "abs")) == "67.46 % (X, from the abstract)"
    assert list(GRADES) == ["abs", "code", "note", "ours"]
    with pytest.raises(ValueError, match="grade: one of abs, code, note, ours"):
        Reported(1.0, None, "X", "rumour")
    assert Shipped(bs.recipes.digits).here == ""


def test_the_command_line_prints_data_network_T_and_the_source_of_the_accuracy(capsys):
    assert main(["recipes"]) == 0
    rows = {
        lines.split(":")[0]: lines
        for lines in re.split(r"\n(?=\S)", capsys.readouterr().out.strip())
    }
    assert list(rows) == list(NAMES)
    for text in (
        "data dvs-cifar10, T = 10",
        "VGGSNN(",
        "83.97 ± 0.12 % (Li et al. 2024, second-hand)",
        "not run",
    ):
        assert text in rows["dvs-cifar10"]
    assert "99.35" in rows["digits"]


def test_shipped_recipes_do_not_depend_on_the_defaults_of_neurons():
    """Their neurons as they were before the defaults changed."""
    want = json.loads((TESTS / "golden" / "neurons.json").read_text("utf-8"))
    assert want.keys() <= NAMES.keys()
    for name, neuron in want.items():
        fields = bs.recipes.get(name).to_dict()["fields"]
        got = {key: fields[key] for key in fields if key.split(".")[0] == "neuron"}
        assert got == neuron, name
