"""Recipes as values, their text in files, and the parser that runs no code."""

import dataclasses
import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import backspike as bs
from backspike.errors import RecipeError
from backspike.recipes import NAMES
from backspike.recipes.recipe import Recipe
from backspike.recipes.text import parse
from backspike.recipes.values import CLIF, PLIF, AdamW, AdaptiveLIF, CubaLIF, Neuron


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_read_back_from_its_file(name):
    recipe = bs.recipes.get(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_infinity_none_and_tuples_are_read_back_from_the_file():
    neuron = Neuron(
        tau=math.inf,
        decay_input=False,
        v_reset=None,
        learn=("threshold",),
        surrogate=bs.SuperSpike(alpha=7),
    )
    recipe = Recipe(neuron=neuron, has_time=True)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_replace_takes_text_or_values_and_changes_nested_fields():
    recipe = bs.recipes.digits().replace(
        {"neuron.surrogate.p": "0.25", "optimizer.lr": 0.5, "epochs": "3", "data": "mnist"}
    )
    assert recipe.neuron.surrogate == bs.Masked(bs.Triangle(alpha=2.0), p=0.25)
    assert recipe.optimizer == AdamW(lr=0.5)
    assert (recipe.epochs, recipe.data) == (3, "mnist")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": "3"}, "did you mean epochs"),
        ({"neuron.sorrogate": "ATan()"}, "did you mean surrogate"),
        ({"neuron.surrogate.q": "1"}, "no field of Masked"),
        ({"neuron.surrogate.p": "1.5"}, r"must lie in \[0, 1\]"),
        ({"neuron.surrogate": "Traingle()"}, "did you mean Triangle"),
        ({"neuron.surrogate": "ATan"}, "ATan()"),
        ({"neuron.tau": "1"}, "tau must be above 1"),
        ({"neuron.tau": "nan"}, "neuron.tau must be a number"),
        ({"T": "0"}, "T must be at least 1"),
        ({"T": "four"}, "T must be a whole number"),
        ({"epochs": "2.5"}, "epochs must be a whole number"),
        ({"epochs": "True"}, "epochs must be a whole number"),
        ({"augment": "Shift(1)"}, "a tuple of"),
        ({"augment": "(Shift(0),)"}, "at least 1"),
        ({"model": "3"}, "model must be a value such as ConvNet"),
        ({"optimizer.lr": "-1"}, "optimizer.lr must be positive"),
        ({"precision": "float8"}, "float32, bfloat16 or float16"),
        ({"schedule": "linear"}, "cosine, constant, StepLR"),
        ({"mask_p_end": "2"}, "probability"),
        ({"seed.a": "1"}, "has no fields"),
        ({"seed": str(2**40)}, "below 2"),
        ({"readout": "TWO(beta='x')"}, "readout.beta must be a number"),
        ({"model": "ConvNet(size=8.5)"}, "model.size must be a whole number"),
        ({"optimizer": "AdamW(lr='a')"}, "optimizer.lr"),
        ({"neuron": "CLIF(v_reset=0.0)"}, "neuron.v_reset must be None"),
        ({"neuron": "LIFF()"}, "did you mean .*LIF"),
        ({"neuron": "ATan()"}, r"neuron must be a value such as PLIF\(tau=2.0\)"),
        ({"neuron": "CLIF()", "neuron.tau_synapse": "3"}, "no field of CLIF"),
        ({"neuron.learn": "threshold"}, r"\('threshold',\)"),
        ({"neuron.surrogate": "Triangle(alfa=2)"}, "alfa"),
    ],
)
def test_a_wrong_field_or_value_is_refused_in_one_line(changes, words):
    with pytest.raises(RecipeError, match=words) as e:
        bs.recipes.digits().replace(changes)
    assert "\n" not in str(e.value)


def test_text_that_looks_like_a_value_stays_text():
    recipe = Recipe(root="/data/copy (2)", name="f(x)")
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_every_field_of_a_neuron_reaches_its_layers():
    options = {
        "tau": 3.0,
        "v_threshold": 0.5,
        "v_reset": None,
        "decay_input": False,
        "surrogate": bs.Rectangle(width=0.5),
    }
    options |= {
        "reset_gradient": 0.25,
        "temporal_gradient": False,
        "learn": ("threshold",),
        "per": "channel",
        "backend": "eager",
    }
    options |= {"memory": "bfloat16"}
    assert {f.name for f in dataclasses.fields(Neuron)} == set(options)
    layer = Neuron(**options)(channels=3)
    assert {name: getattr(layer, name) for name in options} == options
    assert layer.channels == 3


@pytest.mark.parametrize("kind", [Neuron, PLIF, CubaLIF, AdaptiveLIF, CLIF])
def test_a_neuron_is_named_then_changed_and_read_back_from_the_file(kind):
    name = kind.__name__
    recipe = bs.recipes.digits().replace(
        {
            "neuron": f"{name}(tau=3.0, v_threshold=0.5, decay_input=True)",
            "neuron.surrogate": "Sigmoid(2.0)",
        }
    )
    # what the text does not set stays as it is in the recipe; CLIF has its own reset
    v_reset = None if kind is CLIF else 0.0
    wanted = kind(3.0, 0.5, v_reset, True, bs.Sigmoid(2.0), reset_gradient=1.0)
    assert recipe.neuron == wanted
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    layer = recipe.neuron(channels=3)
    assert type(layer).__name__ == {"Neuron": "LIF"}.get(name, name)
    assert (layer.tau, layer.v_threshold, layer.surrogate, layer.channels) == (
        3.0,
        0.5,
        bs.Sigmoid(2.0),
        3,
    )


@pytest.mark.parametrize("text", ["PLIF", "PLIF()", " PLIF( ) "])
def test_another_kind_of_neuron_keeps_the_options_of_the_recipe(text, caplog):
    digits = bs.recipes.digits()
    neuron = digits.replace({"neuron": text}).neuron
    assert type(neuron) is PLIF
    assert dataclasses.astuple(neuron) == dataclasses.astuple(digits.neuron)
    assert neuron.mask
    assert caplog.messages == []


def test_options_in_the_text_of_a_neuron_replace_those_of_the_recipe():
    digits = bs.recipes.digits()
    neuron = digits.replace({"neuron": "LIF(3.0, surrogate=ATan())"}).neuron
    assert neuron == dataclasses.replace(digits.neuron, tau=3.0, surrogate=bs.ATan())
    assert digits.replace({"neuron": "LIF"}) == digits


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CubaLIF(tau_synapse=3.0)", "LIF", "neuron: LIF cannot keep tau_synapse=3.0"),
        ("LIF(v_reset=0.0)", "CLIF()", "neuron: CLIF cannot keep v_reset=0.0"),
    ],
)
def test_options_that_another_neuron_lacks_are_named(old, new, message, caplog):
    recipe = bs.recipes.digits().replace({"neuron": old})
    neuron = recipe.replace({"neuron": new}).neuron
    assert neuron.v_threshold == 0.5
    assert caplog.messages == [message]


def test_options_of_single_kinds_of_neurons():
    assert CubaLIF(tau_synapse=5.0, learn=("tau_synapse",))().tau_synapse == 5.0
    assert PLIF()().learn == ("tau",)
    adaptive = (
        bs.recipes.digits().replace({"neuron": "AdaptiveLIF(a=0.5, learn=('a', 'b'))"}).neuron
    )
    assert (adaptive(channels=3).a, adaptive(channels=3).adaptation_b.shape) == (0.5, (3,))
    assert (CLIF()().v_reset, CLIF()().decay_input, CLIF()().surrogate) == (
        None,
        False,
        bs.Rectangle(),
    )
    stored = Recipe().to_dict()
    del stored["fields"]["neuron"]  # as in files from before there were other kinds
    assert Recipe.from_dict(stored) == Recipe()


def test_annealing_to_one_cannot_be_rescaled():
    with pytest.raises(RecipeError, match="rescale"):
        Recipe(mask_p_end=1.0, neuron=Neuron(surrogate=bs.Masked(bs.ATan(), rescale=True)))


def test_annealing_needs_a_mask():
    with pytest.raises(RecipeError, match="Masked"):
        Recipe(mask_p_end=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "(1).__class__",
        "[i for i in (1, 2)]",
        "Triangle.__init__",
        "lambda: 1",
        "Triangle(**{'alpha': 2})",
        "Triangle(*(2,))",
        "1 + 1",
        "f'{1}'",
        "b'bytes'",
        "1j",
        "((((" * 500,
        "-" * 5000 + "1",
        "9" * 20_000,
        "",
        "\x00",
    ],
)
def test_untrusted_text_builds_only_values(text):
    with pytest.raises(RecipeError):
        parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
@example("Masked(Triangle(2), 0.5)")
@example("-Triangle()")
@example("-'a'")
def test_parse_returns_a_value_or_raises_a_recipe_error(text):
    try:
        value = parse(text)
    except RecipeError:
        return
    assert isinstance(value, bool | int | float | str | tuple | None) or dataclasses.is_dataclass(
        value
    )


def test_a_users_own_surrogate_can_be_named():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Mine:
        a: float = 1.0

        def derivative(self, z):
            return z * 0 + self.a

        def primitive(self, z):
            return z * self.a

    recipe = Recipe(neuron=Neuron(surrogate=bs.Masked(Mine(a=2.0), p=0.1)))
    stored = json.loads(
        json.dumps(recipe.to_dict()).replace(
            "test_a_users_own_surrogate_can_be_named.<locals>.", ""
        )
    )
    with pytest.raises(RecipeError, match="unknown name Mine"):
        Recipe.from_dict(stored)
    assert Recipe.from_dict(stored, values=(Mine,)) == recipe


@pytest.mark.parametrize(
    "stored",
    [None, [], {}, {"fields": 3}, {"name": "x", "fields": {"a.b.c": 1}}, {"fields": {"T": None}}],
)
def test_a_damaged_recipe_file_raises_a_recipe_error(stored):
    with pytest.raises(RecipeError):
        Recipe.from_dict(stored)
