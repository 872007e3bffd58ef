"""Recipes that compute gradients in chunks of time: `truncate` and `rule`."""

import pytest
import torch
from helpers.training import Own, Points, Stop, epochs, fit, own, same, stop_after, tiny, weights
from torch import nn

import backspike as bs
from backspike import train
from backspike.errors import RecipeError, RunError
from backspike.recipes.values import PDA, SGD, SGS, TEBN

RULES = [{"truncate": 2}, {"rule": "checkpoint"}, {"rule": "sltt"}, {"rule": "ottt"}]
NAMES = ["truncate", "checkpoint", "sltt", "ottt"]


@pytest.mark.parametrize("changes", RULES, ids=NAMES)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, changes):
    recipe = tiny(checkpoint_seconds=0, epochs=2, accumulate=2, weight_mask=0.1, **changes)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(3))
    torch.manual_seed(999)
    train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "parts")


@pytest.mark.parametrize("changes", RULES, ids=NAMES)
def test_each_rule_learns(tmp_path, changes):
    result = fit(own(T=4, **changes), tmp_path / "run", Own(), Points(), Points(8))
    assert result.test_accuracy == 1


def test_a_step_of_the_checkpointed_rule_is_the_plain_one_and_others_differ(tmp_path):
    ends = {}
    for name, changes in [("plain", {}), *zip(NAMES, RULES)]:
        torch.manual_seed(0)
        model = Own()  # no norm, whose statistics would depend on the chunk
        # with a detached soft reset, OTTT of one layer is exact
        model.net[1] = bs.LIF(v_threshold=0.5, v_reset=0.0, reset_gradient=1.0)
        recipe = own(T=6, **changes)
        recipe = recipe.replace({"epochs": 1, "batch_size": 64, "optimizer": SGD(lr=1.0)})
        fit(recipe, tmp_path / name, model, Points(), Points(8))
        ends[name] = weights(tmp_path / name)["model.net.0.0.weight"]
    assert torch.allclose(ends["plain"], ends["checkpoint"], rtol=0, atol=1e-6)
    others = [ends[name] for name in ("plain", "truncate", "sltt", "ottt")]
    for i, a in enumerate(others):
        assert not any(torch.allclose(a, b, rtol=0, atol=1e-4) for b in others[:i])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "rtrl"}, "rule must be one of bptt, checkpoint, sltt, ottt, got rtrl"),
        ({"truncate": -1}, "truncate must be not negative, got -1"),
        ({"rule": "sltt", "truncate": 2}, "truncate must be 0 with rule sltt, got 2"),
        ({"truncate": 2, "potential": PDA()}, "potential must be None with truncate 2"),
        ({"rule": "ottt", "scaling": SGS()}, "scaling must be None with rule ottt"),
        ({"rule": "checkpoint", "norm": TEBN()}, "norm must be another one with rule checkpoint"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        bs.Recipe(**changes)


def test_models_that_a_rule_cannot_train_are_refused_before_the_first_step(tmp_path):
    model = Own()
    model.net[1] = bs.CubaLIF()
    with pytest.raises(RunError, match="cannot be trained: ottt: feed-forward networks of LIF"):
        fit(own(rule="ottt"), tmp_path / "run", model, Points(), Points(8))
    model.net[1] = bs.LIF()
    model.net[0] = nn.Sequential(bs.OverTime(nn.Linear(2, 16)), bs.OverTime(bs.TEBN(16, 4)))
    with pytest.raises(RunError, match="TEBN has factors for T=4 timesteps, got 2"):
        fit(own(truncate=2), tmp_path / "run", model, Points(), Points(8))
    assert not (tmp_path / "run").exists()
