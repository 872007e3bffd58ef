"""A layer without spikes is reported once, with what to do."""

import logging

import pytest
import torch
from helpers.training import Stop, fit, same, stop_after, tiny, weights
from torch import nn

import backspike as bs
from backspike.analysis.finding import DRAW_WEIGHTS
from backspike.run import Run
from backspike.train import progress, resume


def network(threshold=50.0):
    """The second spiking layer fires only if the threshold is low."""
    neuron = {"v_reset": 0.0, "decay_input": True, "surrogate": bs.Rectangle(width=0.1)}
    return nn.Sequential(
        bs.OverTime(nn.Flatten(), nn.Linear(64, 30)),
        bs.LIF(v_threshold=0.01, **neuron),
        bs.OverTime(nn.Linear(30, 20)),
        bs.LIF(v_threshold=threshold, **neuron),
        bs.OverTime(nn.Linear(20, 10)),
    )


def silent(events):
    return [e for e in events if e["event"] == "silent"]


def recipe(**changes):
    return tiny(limit=400, epochs=4, augment=(), **changes)  # 13 batches of 32 in an epoch


def test_a_layer_that_stays_silent_is_reported_once(tmp_path):
    events = []
    fit(recipe(), tmp_path / "run", model=network(), listen=events.append)
    [event] = silent(events)
    assert (event["layers"], event["steps"]) == (["3"], 50)
    assert "no spike in 3, neither before training nor after 50 steps" in event["text"]
    assert DRAW_WEIGHTS in event["text"]
    assert "v_threshold" in event["text"]
    assert progress._text(event) == f"silent: {event['text']}"
    assert silent(Run.open(tmp_path / "run").log()) == [event]


def test_a_shorter_run_reports_it_at_its_end(tmp_path):
    events = []
    fit(tiny(limit=120), tmp_path / "run", model=network(), listen=events.append)
    [event] = silent(events)
    assert event["steps"] == 12


@pytest.mark.parametrize("threshold", [0.01, 50.0])
def test_layers_that_fire_are_not_reported(tmp_path, threshold):
    """From the start, or since the fifth batch."""
    events, model = [], network(threshold)

    def listen(event):
        events.append(event)
        if event["event"] == "batch" and event["batch"] == 5 and event["epoch"] == 0:
            with torch.no_grad():
                model[2][0].bias.fill_(200.0)

    fit(recipe(), tmp_path / "run", model=model, listen=listen)
    assert silent(events) == []
    assert (Run.open(tmp_path / "run").log()[0]["firing_rate"]["3"] == 0) == (threshold > 1)


def test_a_norm_without_statistics_is_no_reason(tmp_path):
    """In evaluation its first running statistics silence the layer, in training it fires."""

    def normed():
        torch.manual_seed(0)
        neuron = bs.LIF(v_threshold=3.0, v_reset=0.0, decay_input=False)
        return nn.Sequential(
            bs.OverTime(nn.Flatten(), nn.Linear(64, 30), nn.BatchNorm1d(30, momentum=1e-4)),
            neuron,
            bs.OverTime(nn.Linear(30, 10)),
        )

    fit(recipe(**{"optimizer.lr": 1e-4}), tmp_path / "run", model=normed())
    log = Run.open(tmp_path / "run").log()
    assert log[0]["firing_rate"]["1"] == 0
    assert silent(log) == []


def test_it_changes_no_result(tmp_path, monkeypatch):
    torch.manual_seed(0)
    start = network().state_dict()
    for name in ("told", "quiet"):
        model = network()
        model.load_state_dict(start)
        if name == "quiet":
            monkeypatch.setattr("backspike.train.events.silent_layers", lambda log: [])
        fit(recipe(), tmp_path / name, model=model)
        assert len(silent(Run.open(tmp_path / name).log())) == (name == "told")
    assert same(weights(tmp_path / "told"), weights(tmp_path / "quiet"))


@pytest.mark.parametrize("batches", [4, 15])
def test_a_resumed_run_reports_it_once(tmp_path, batches):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        fit(recipe(checkpoint_seconds=0.0), run, model=network(), listen=stop_after(batches))
    resume(run, model=network(), report=False)
    assert len(silent(Run.open(run).log())) == 1


def test_without_a_listener_it_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "backspike"):
        fit(recipe(), tmp_path / "run", model=network())
    assert [r.getMessage() for r in caplog.records if "no spike in 3" in r.getMessage()]
    caplog.clear()
    fit(recipe(), tmp_path / "other", model=network(), listen=lambda event: None)
    assert not caplog.records


def test_the_doctor_advises_new_weights_for_an_own_model():
    [finding] = [f for f in bs.examine(recipe(), model=network()).findings if not f.note]
    assert finding.problem == "silent layer"
    assert DRAW_WEIGHTS in finding.advice
    [finding] = [f for f in bs.examine(tiny(**{"neuron.v_threshold": 9.0})).findings if not f.note]
    assert DRAW_WEIGHTS not in finding.advice  # a recipe cannot call it
