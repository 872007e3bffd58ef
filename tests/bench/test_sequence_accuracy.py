"""The script that compares spiking networks with plain ones on the data for time."""

import importlib
import json

import pytest
import torch
from helpers.paths import ROOT
from helpers.recipes import put

import backspike as bs


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("sequence_accuracy")


def test_plain_networks_have_as_many_weights_as_the_spiking_ones(script):
    for name in script.RECIPES:
        recipe = bs.recipes.get(name)
        spiking, plain = (
            sum(p.numel() for p in model.parameters())
            for model in (recipe.network(), script.plain(recipe))
        )
        assert abs(plain / spiking - 1) < 0.02, name


def test_the_seed_of_the_recipe_draws_the_weights_of_the_plain_network(script):
    first, again, other = (
        torch.cat([p.flatten() for p in script.plain(recipe).parameters()])
        for recipe in (bs.recipes.get("scifar10").replace({"seed": seed}) for seed in (0, 0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_mlp_reads_the_values_that_are_given_as_spike_times(script):
    recipe = bs.recipes.get("yinyang")
    model = script.plain(recipe)
    times = torch.tensor([[0, 49, 7, 42], [25, 24, 1, 48]])
    x = (torch.arange(recipe.T)[:, None, None] == times).float()
    o = model(x)
    assert o.shape == (recipe.T, 2, 3)
    for o_t in o:
        torch.testing.assert_close(o_t, model.layers(times / 49))


def test_a_run_is_trained_once_and_continues_where_it_stopped(script, tmp_path, monkeypatch):
    put("yinyang", tmp_path)
    monkeypatch.setattr(script, "DATA", tmp_path)
    lines = []
    for network, others in (("plain", {}), ("spiking", {"weights": 1083})):
        line = script.run("yinyang", network, 2, tmp_path / "runs")
        again = script.run("yinyang", network, 2, tmp_path / "runs")
        assert again == line
        assert others.items() <= line.items()
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "results.jsonl").write_text("".join(lines))
    table = script.table(script.Results(tmp_path / "results.jsonl"))
    assert "| yinyang | MLP 4-135-3 | 1,083 | 20 |" in table
    spiking, plain = table.splitlines()[2:]
    assert "| yinyang | MLP(num_classes=3, in_channels=4, hidden=(120,)" in spiking
    assert plain.endswith("| 1 | 0.0 |")
