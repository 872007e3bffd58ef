"""`bs.summary` against counting by hand."""

import math

import pytest
import torch
from torch import nn

import backspike as bs

T, B = 4, 3


@pytest.fixture
def model():
    """Every neuron of the first layer spikes at every timestep, none of the second ever does."""
    model = bs.Sequential(
        bs.OverTime(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),
        bs.LIF(),
        bs.OverTime(nn.Flatten(), nn.Linear(2 * 4 * 4, 5)),
        bs.LIF(),
    )
    with torch.no_grad():
        model[0][0].weight.zero_()
        model[0][0].bias.fill_(5.0)
        model[2][1].weight.zero_()
        model[2][1].bias.zero_()
    return model


@pytest.fixture
def x():
    return torch.rand(T, B, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_every_number_of_a_small_network(model, x):
    summary = bs.summary(model, x)
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["0.0", "0.1", "1", "2.0", "2.1", "3"]
    assert [row.kind for row in summary.rows][:3] == ["Conv2d", "BatchNorm2d", "LIF"]
    shapes = [row.shape for row in summary.rows]
    assert shapes == [(2, 4, 4), (2, 4, 4), (2, 4, 4), (32,), (5,), (5,)]
    assert [row.parameters for row in summary.rows] == [20, 4, 0, 0, 165, 0]
    assert summary.parameters == 189
    assert rows["1"].spikes == T * 32
    assert rows["1"].rate == 1
    assert rows["3"].spikes == rows["3"].rate == 0
    assert summary.spikes == T * 32
    # real inputs: 9 taps for each of 2 x 4 x 4 outputs, at each timestep
    assert (rows["0.0"].macs, rows["0.0"].additions) == (T * 9 * 32, 0)
    # spikes: one addition for each of 32 spikes and 5 outputs
    assert (rows["2.1"].macs, rows["2.1"].additions) == (0, T * 32 * 5)
    assert rows["1"].macs == T * 32
    assert math.isnan(rows["0.1"].macs)
    assert summary.snn.macs == T * (9 * 32 + 32 + 5)
    assert summary.ann.macs == 9 * 32 + 32 * 5


def test_the_text_and_the_html_show_every_layer_and_the_totals(model, x):
    summary = bs.summary(model, x)
    text, html = str(summary), summary._repr_html_()
    for shown in (text, html):
        assert shown.count("LIF") == 2
        assert "2 × 4 × 4" in shown
        assert "189 parameters, 128 spikes" in shown
        assert "T = 4" in shown
    assert html.count("<tr>") == 7
    assert "<p>" in html


def test_html_escapes_the_names_of_layers(x):
    model = nn.Sequential()
    model.add_module("<b>", bs.LIF())
    assert "&lt;b&gt;" in bs.summary(model, x).to_html()


def test_the_model_is_left_as_it_was(model, x):
    model.train()
    model[0][1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    bs.summary(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[0][1].training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert not model[1].watchers


def test_recurrent_layers_and_parts_that_do_not_run():
    model = nn.Sequential(nn.Linear(5, 7), bs.Recurrent(nn.Linear(7, 7), bs.LIF()))
    model[1].spare = nn.Linear(2, 3)
    rows = {row.name: row for row in bs.summary(model, torch.rand(6, 2, 5)).rows}
    assert rows["1.neuron"].shape == (7,)
    assert rows["1.neuron"].macs == 6 * 7
    assert rows["1.spare"].shape is None
    assert "not run" in str(bs.summary(model, torch.rand(6, 2, 5)))


def test_attention_has_rows_for_products_of_activations():
    model = bs.models.spikformer(
        num_classes=10, in_channels=1, dim=32, depth=1, heads=2, neuron=lambda channels: bs.LIF()
    )
    rows = bs.summary(model, torch.rand(2, 1, 1, 32, 32)).rows
    assert [row.kind for row in rows].count("matrix product") == 2


@pytest.mark.parametrize("bad", [torch.rand(4), torch.rand(0, 2, 3), [1, 2]])
def test_a_sample_without_time_and_batch_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected a sample \[T, B, ...\], got"):
        bs.summary(bs.LIF(), bad)
