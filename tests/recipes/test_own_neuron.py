"""Neurons with equations of their own in recipes: as text, and as a class in the user's file."""

import json

import numpy as np
import pytest
from helpers.training import Stop, same, stop_after, weights

import backspike as bs
from backspike.errors import RecipeError
from backspike.recipes import values
from backspike.recipes.recipe import Recipe

KINDS = ("QIF", "EIF", "AdEx", "Izhikevich", "BRF", "RefractoryLIF", "RefractoryCubaLIF")
QUICK = {"report": False, "progress": False}
TEXT = """
import torch
from torch import nn

import backspike as bs
from backspike.recipes.values import AdamW


class Fatigue(bs.Neuron):
    states = {"v": 0.0, "w": 0.0}
    tau: float = 3.0
    b: float = 0.2

    def step(self, x, v, w):
        u = (1 - 1 / self.tau) * v + x - w
        return u, u, 0.9 * w

    def reset(self, s, v, w):
        return v - s, w

    def adapt(self, s, v, w):
        return v, w + self.b * s


def learned(channels):
    return Fatigue(learn=("b", "tau"), channels=channels, surrogate=bs.Masked(bs.ATan(), p=0.3))


def make_network(neuron):
    return nn.Sequential(
        bs.OverTime(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16)),
        neuron(channels=16),
        bs.OverTime(nn.Linear(16, 10)),
    )


def recipe():
    return bs.Recipe(
        model=make_network, neuron=learned, T=6, epochs=3, limit=96, optimizer=AdamW(lr=0.02)
    )
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    return f"{path}:recipe"


@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_neuron_is_named_then_changed_and_read_back_from_the_file(kind):
    digits = bs.recipes.digits()
    recipe = digits.replace({"neuron": kind, "neuron.surrogate.p": "0.25"})
    assert type(recipe.neuron) is getattr(values, kind)
    assert recipe.neuron.mask.p == 0.25
    # constants of the same name mean something else
    own = {"tau", "v_reset"} & {*recipe.neuron.__dataclass_fields__}
    assert all(getattr(recipe.neuron, n) == getattr(type(recipe.neuron), n) for n in own)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    layer = recipe.neuron(channels=3)
    assert type(layer) is getattr(bs, kind)
    assert layer.options.surrogate == recipe.neuron.surrogate
    assert layer.numbers == {n: getattr(recipe.neuron, n) for n in layer.defaults}
    back = recipe.replace({"neuron": "LIF"}).neuron
    assert (back.tau, back.v_reset, back.mask.p) == (2.0, None, 0.25)


def test_constants_are_fields_and_options_of_lif_are_not():
    recipe = bs.recipes.digits().replace({"neuron": "AdEx(b=40.0)", "neuron.tau_w": "100"})
    assert (recipe.neuron.b, recipe.neuron.tau_w) == (40.0, 100)
    with pytest.raises(RecipeError, match=r"neuron.tau: no field of AdEx .* did you mean tau_w"):
        recipe.replace({"neuron.tau": "3"})


def test_a_recipe_with_a_shipped_neuron_trains_and_is_reported(tmp_path):
    recipe = bs.recipes.digits().replace(
        {"neuron": "Izhikevich(current=20.0)", "epochs": 1, "limit": 64, "T": 12}
    )
    bs.fit(recipe, tmp_path / "run", progress=False)
    assert "Izhikevich" in (tmp_path / "run/report.html").read_text()
    layer = next(m for m in bs.load(tmp_path / "run").modules() if isinstance(m, bs.Izhikevich))
    assert layer.current == 20.0
    arrays = np.load(tmp_path / "run/evaluation.npz")
    neurons = arrays["op_kind"] == "neurons"
    outputs = arrays["op_outputs"][neurons]
    assert (arrays["op_inputs"][neurons] == 2 * outputs).all()  # v and w
    # 0.04 v v, 5 v, dt times the sum, current x; b v, dt a times the sum; the scale
    assert (arrays["op_macs"][neurons] == 8 * outputs).all()


def test_a_class_of_the_users_file_trains_and_resumes_bit_for_bit(mine, tmp_path):
    recipe = bs.recipes.from_file(mine).replace({"checkpoint_seconds": 0.0})
    with pytest.raises(Stop):
        bs.fit(recipe, tmp_path / "run", listen=stop_after(4), report=False)
    bs.resume(tmp_path / "run", recipe=mine, **QUICK)
    bs.fit(recipe, tmp_path / "whole", **QUICK)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert any("constant_b" in name for name in weights(tmp_path / "run"))
    assert '"learned"' in (tmp_path / "run/recipe.json").read_text()
    assert bs.evaluate(tmp_path / "run", recipe=mine)["test_accuracy"] > 0.2


def test_the_class_itself_may_be_the_neuron_and_a_layer_may_not(mine):
    recipe = bs.recipes.from_file(mine)
    assert type(recipe.replace({"neuron": "Fatigue"}).network()[1]).__name__ == "Fatigue"
    with pytest.raises(RecipeError, match="neuron must be a function or a class"):
        recipe.replace({"neuron": "Fatigue(b=0.1)"})


def test_the_doctor_examines_it(mine):
    found = bs.examine(bs.recipes.from_file(mine).replace({"epochs": 20, "limit": 256})).findings
    assert [f for f in found if not f.note] == []
