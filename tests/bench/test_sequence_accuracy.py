"""The script that compares spiking networks with plain ones on the data for time."""

import importlib
import json
import sys

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
    results = tmp_path / "results.jsonl"
    words = ["", "yinyang", "--epochs", "2", "--limit", "18", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [*words, "--runs", str(tmp_path / "runs")])
    script.main()
    text = results.read_text()
    script.main()
    assert results.read_text() == text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["network"], line["seed"]) for line in lines] == [
        (network, seed) for seed in (0, 1, 2) for network in ("spiking", "plain")
    ]
    results.unlink()  # the runs are there: their accuracies are read, not trained again
    script.main()
    again = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["seconds"] for line in again] == [line["seconds"] for line in lines]
    *_, spiking, plain = script.table(script.Results(results)).splitlines()
    assert spiking.startswith("| yinyang | 18 | 2 | spiking 4-120-3 | 1,083 | ")
    assert plain.startswith("| yinyang | 18 | 2 | MLP 4-135-3 | 1,083 | ")
    assert plain.endswith(" | 3 |")
