"""Recipes that a Python file of the user's makes: what they hold, their text, their errors."""

import pickle
import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers.own_file import width, write
from torch import nn

import backspike as bs
from backspike.errors import RecipeError, RunError
from backspike.models import ConvNet
from backspike.recipes import from_file, is_file
from backspike.recipes.recipe import Recipe
from backspike.recipes.source import Source, text
from backspike.recipes.text import parse
from backspike.recipes.values import TDBN, Neuron
from backspike.system.workers import Worker
from backspike.train.setup import load_data


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path)


def refusal(call, *arguments, error=RecipeError):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_recipe_of_a_file_holds_its_functions_and_its_text_their_names(mine):
    recipe = from_file(f"{mine}:recipe")
    assert recipe.network()[0][0].weight.shape == (16, 2)
    assert recipe.name == "mine"
    fields = recipe.to_dict()["fields"]
    assert [fields[name] for name in ("model", "data", "neuron", "loss")] == [
        "make_network",
        "make_data",
        "make_neuron",
        "loss",
    ]
    assert fields["augment"] == "(shake, Louder(by=1.2))"
    assert "limit" not in fields
    assert (recipe.source.file, recipe.source.function) == (str(mine), "recipe")
    assert from_file(str(mine)) == recipe
    assert recipe.replace({"epochs": "5"}).source is recipe.source


def test_words_that_name_a_python_file():
    assert all(map(is_file, ("mine.py", "a/mine.py:recipe", "../x.py:")))
    assert not any(map(is_file, ("digits", "mine.json", "mine.py/run", "runs/a", "x.py:a:b")))


def test_own_names_can_be_given_as_text(mine):
    recipe = from_file(f"{mine}:plain")
    changed = recipe.replace({"model": "wide", "neuron.surrogate": "Masked(Tent(2), p=0.1)"})
    assert changed.network()[0][0].weight.shape == (32, 2)
    assert repr(changed.neuron.surrogate.base) == "Tent(width=2)"
    changed = recipe.replace({"loss": "loss", "augment": "(shake, Louder(3))"})
    assert changed.loss(torch.zeros(1), torch.zeros(1, 2), torch.tensor([0])).item() > 0
    assert recipe.replace({"neuron": "make_neuron"}).neuron(channels=3).v_threshold == 0.5
    other = recipe.replace({"data": "digits"})
    assert other.data == "digits"
    assert other.replace({"data": "make_data"}).data is recipe.data
    assert "did you mean wide or" in refusal(recipe.replace, {"model": "wid"})
    assert "unknown name wide" in refusal(bs.recipes.digits().replace, {"model": "wide"})


def test_text_names_functions_but_never_calls_them():
    called = []
    names = {"f": called.append, "g": lambda: called.append(1)}
    assert parse("f", names) is names["f"]
    assert parse("(g, 1)", names) == (names["g"], 1)
    assert "g is a function; leave its brackets out" in refusal(parse, "g()", names)
    assert called == []


def test_a_recipe_is_read_back_onto_the_one_of_its_file(mine):
    recipe = from_file(f"{mine}:plain")
    stored = recipe.replace({"model": "wide", "epochs": 7, "loss": "loss"}).to_dict()
    back = recipe.restored(stored)
    assert back.to_dict() == stored
    assert back.model is not recipe.model
    names = vars(recipe.source.module())
    values = [names[name] for name in ("wide", "make_data", "loss", "Tent")]
    assert Recipe.from_dict(stored, values) == back
    assert "unknown name" in refusal(Recipe.from_dict, stored)


def test_another_kind_of_neuron_is_read_back_with_all_its_options():
    """PLIF and LIF differ in defaults, which hid an option equal to LIF's."""
    recipe = bs.recipes.digits().replace({"neuron": "PLIF(v_reset=None, decay_input=False)"})
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_texts_have_no_addresses(mine):
    names = vars(from_file(str(mine)).source.module())
    assert text(names["shake"]) == "shake"
    assert text(names["Points"]) == "Points"
    assert text(names["Points"]([1])) == "Points"
    assert text(partial(names["shake"], 2)) == "functools.partial(shake, 2)"
    assert text((lambda: 0,)) == "(<lambda>,)"
    assert text("a") == "'a'"


def test_pickled_recipes_import_the_file_again(mine):
    recipe = from_file(f"{mine}:plain").replace({"model": "wide", "epochs": 9})
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with Worker() as worker:
        assert worker.call(Recipe.to_dict, recipe) == recipe.to_dict()
        assert worker.call(width, recipe) == 32


def test_a_pickled_recipe_is_refused_once_its_file_has_changed(mine):
    packed = pickle.dumps(from_file(str(mine)))
    mine.write_text(mine.read_text() + "\n")
    assert f"{mine} has changed since this program started" in refusal(pickle.loads, packed)


def test_a_file_is_read_as_import_reads_it(tmp_path):
    path = tmp_path / "marked.py"
    path.write_bytes(b"\xef\xbb\xbfclass A:\n    x: int = 1\n")
    assert Source.read(f"{path}:A").module().A.__annotations__ == {"x": int}


def test_an_edited_file_is_imported_anew(mine):
    assert from_file(str(mine)).epochs == 3
    mine.write_text(mine.read_text().replace("epochs=3", "epochs=4"))
    assert from_file(str(mine)).epochs == 4


def test_a_file_is_imported_once_and_can_import_files_beside_it(tmp_path):
    write(tmp_path, "epochs = 6\n", "beside_it.py")
    count = "import sys\nsys.imports = getattr(sys, 'imports', 0) + 1\nimport beside_it\n"
    body = "import backspike as bs\ndef recipe(): return bs.Recipe(epochs=beside_it.epochs)\n"
    path = write(tmp_path, count + body, "counted.py")
    assert [from_file(str(path)).epochs for _ in range(3)] == [6, 6, 6]
    assert sys.imports == 1
    assert "counted" in sys.modules
    del sys.imports


BAD = {
    "def recipe(: pass": "mine.py, line 1: SyntaxError",
    "x = 1\n1 / 0": "mine.py, line 2: ZeroDivisionError: division by zero",
    "def recipe():\n    return nothing": "mine.py, line 2: NameError: name 'nothing'",
    "def recipy(): pass": "has no function 'recipe'; did you mean recipy?",
    "recipe = 3": "has no function 'recipe'",
    "def recipe(): return 3": "must return a bs.Recipe or a bs.study.Study, got int",
    "def recipe(): raise ValueError('a\\nb')": "mine.py, line 1: ValueError: a",
    "import backspike as bs\ndef recipe(): return bs.Recipe(T=0)": "T must be at least 1, got 0",
    "raise SystemError": "mine.py, line 1: SystemError",
}


@pytest.mark.parametrize("code", BAD)
def test_a_file_that_cannot_be_used_is_one_line_of_error(tmp_path, code):
    assert BAD[code] in refusal(from_file, str(write(tmp_path, code)))


def test_a_file_that_fails_leaves_no_module(tmp_path):
    before = sys.modules.get("mine")
    refusal(from_file, str(write(tmp_path, "1 / 0")))
    assert sys.modules.get("mine") is before


def test_files_that_are_no_python_text_are_refused(tmp_path):
    assert f"there is no file {tmp_path}/none.py" in refusal(from_file, f"{tmp_path}/none.py")
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe")
    assert "bytes.py cannot be read" in refusal(from_file, f"{tmp_path}/bytes.py")
    (tmp_path / "large.py").write_bytes(b"#" * ((1 << 20) + 1))
    assert "at most 1048576 bytes" in refusal(from_file, f"{tmp_path}/large.py")
    (tmp_path / "folder.py").mkdir()
    assert "there is no file" in refusal(from_file, f"{tmp_path}/folder.py")


def test_a_file_never_replaces_a_module_that_is_imported(tmp_path):
    before = sys.modules["random"]
    path = write(tmp_path, "def recipe(): pass", "random.py")
    assert "has the name of the module 'random'" in refusal(from_file, str(path))
    assert sys.modules["random"] is before is random


def data(T, limit, seed):
    return [[(T, limit, seed)], [1]]


def test_functions_get_the_fields_that_they_take():
    recipe = Recipe(model=lambda T, norm, neuron: nn.Linear(T, 1), data=data, limit=5, T=7)
    assert recipe.network().weight.shape == (1, 7)
    assert load_data(recipe).train == [(7, 5, 0)]
    assert Recipe(model=nn.Identity).network().training  # a class
    seen = []

    def model(neuron, norm):
        seen.extend([neuron, norm(3)])
        return nn.Identity()

    Recipe(model=model, norm=TDBN(), neuron=Neuron(tau=3.0)).network()
    assert seen[0] == Neuron(tau=3.0)
    assert type(seen[1]) is bs.TDBN


def test_fields_that_no_function_takes_are_refused():
    def model():
        return nn.Identity()

    set_limit = partial(Recipe, data=lambda: (), limit=5)
    assert "limit has no effect, as <lambda> does not take it; give the function a par" in refusal(
        set_limit
    )
    recipe = Recipe(model=model)
    assert not [name for name in recipe.to_dict()["fields"] if name.startswith(("neuron", "norm"))]
    assert "neuron has no effect, as model does not" in refusal(recipe.replace, {"neuron.tau": 3.0})
    assert "norm has no effect" in refusal(partial(Recipe, model=model, norm=TDBN()))
    assert "norm must be None with a neuron of your own" in refusal(
        partial(Recipe, neuron=lambda channels: nn.ReLU(), norm=TDBN())
    )
    assert "bs.fit(recipe, out, model=...)" in refusal(partial(Recipe, model=nn.Identity()))
    assert "model must be" in refusal(partial(Recipe, model=ConvNet))
    assert "must return a torch.nn.Module, got int" in refusal(Recipe(model=lambda: 3).network)


def test_a_neuron_of_ones_own_goes_into_networks_of_the_package():
    network = Recipe(model=ConvNet("4-P"), neuron=lambda channels: bs.IF()).network()
    assert len([m for m in network.modules() if type(m) is bs.IF]) == 1


def draw():
    x = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    return [x], [1]


def test_data_functions_draw_the_same_numbers_every_time():
    recipe = Recipe(data=draw)
    first = load_data(recipe).train[0]
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    second = load_data(recipe.replace({"seed": 3})).train[0]
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first[0], second[0])
    assert first[1].tolist() == second[1].tolist()
    assert first[2] == second[2]


@pytest.mark.parametrize(
    ("made", "given"),
    [(None, "a NoneType"), ([1], "1 values"), ((1, 2, 3, 4), "4 values"), ({}, "a dict")],
)
def test_data_functions_return_two_or_three_data_sets(made, given):
    error = refusal(load_data, Recipe(data=lambda: made), error=RunError)
    assert error.startswith("<lambda> must return (train, test), (train, validation, test)")
    assert error.endswith(given)


def test_data_functions_may_return_splits():
    sets = bs.data.load("digits")
    assert load_data(Recipe(data=lambda: sets)) is sets
    assert load_data(Recipe(data=lambda: ([1], [2]))).validation is None


def test_reading_a_source_runs_nothing(tmp_path):
    path = write(tmp_path, f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\ndef recipe(): pass")
    source = Source.read(f"{path}:recipe")
    assert not (tmp_path / "mark").exists()
    source.module()
    assert (tmp_path / "mark").exists()
