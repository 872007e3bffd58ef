"""What a training says once, in one line: a loss that explodes, a batch above the training set."""

import logging

import pytest
from helpers.training import Own, Points, Stop, fit, own, stop_after, tiny

from backspike.cli import main
from backspike.run import Run
from backspike.train import progress, resume


def named(name, events):
    return [e for e in events if e["event"] == name]


def diverging(**changes):
    return tiny(augment=(), **{"optimizer.lr": 1e6, "clip": 0.0, "readout": "Mean()", **changes})


def test_a_loss_that_explodes_is_reported_once(tmp_path):
    events = []
    fit(diverging(), tmp_path / "run", listen=events.append)
    [event] = named("diverged", events)
    log = Run.open(tmp_path / "run").log()
    assert named("diverged", log) == [event]
    before, first = log[0]["loss"], named("epoch", log)[0]["loss"]
    assert 1 < before < 4  # log 10 = 2.3 is chance
    assert first > 1000
    assert event["text"] == (
        f"the loss grew to {first:.3g} from {before:.3g} before training: "
        "train again with a lower optimizer.lr (1e+06) or with clip=1"
    )
    assert progress._text(event) == f"diverged: {event['text']}"


def test_a_resumed_run_does_not_report_it_again(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        fit(diverging(checkpoint_seconds=0.0), run, listen=stop_after(6))
    resume(run, report=False)
    assert len(named("diverged", Run.open(run).log())) == 1


def test_a_training_that_learns_is_not_reported(tmp_path):
    events = []
    fit(tiny(), tmp_path / "run", listen=events.append)
    assert not named("diverged", events)
    assert not named("one_step", events)


def test_a_batch_above_the_training_set_is_reported(tmp_path, caplog):
    events = []
    recipe = own(has_time=False).replace({"batch_size": 100})
    fit(recipe, tmp_path / "run", Own(), Points(64), listen=events.append)
    [event] = named("one_step", events)
    assert event["text"] == (
        "batch_size=100 is more than the 64 training samples, so an epoch is a single step of all "
        "of them; a smaller one takes more steps"
    )
    assert named("one_step", Run.open(tmp_path / "run").log()) == [event]
    with caplog.at_level(logging.WARNING, "backspike"):
        fit(recipe, tmp_path / "other", Own(), Points(64))
    assert event["text"] in caplog.text
    events.clear()
    fit(recipe.replace({"batch_size": 64}), tmp_path / "exact", Own(), Points(64))
    assert not named("one_step", events)


def test_the_command_line_shows_both(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["backspike"])
    fields = ["--limit=60", "--epochs=2", "--batch_size=100", "--optimizer.lr=1e9"]
    fields += ["--clip=0", "--model=ConvNet('6-P-8-P', size=8)", "--warmup_epochs=0"]
    assert main(["train", "--out", str(tmp_path / "run"), *fields]) == 0
    out = capsys.readouterr().out
    assert "diverged: the loss grew to " in out
    assert "a lower --optimizer.lr (1e+09) or with --clip 1\n" in out
    assert "one step: --batch_size 100 is more than the 60 training samples" in out


@pytest.mark.parametrize("name", ["network.nir", "network.onnx", "step.onnx"])
def test_training_again_removes_exports_of_the_old_weights(tmp_path, name):
    run, recipe = tmp_path / "run", own().replace({"epochs": 1})
    fit(recipe, run, Own(), Points(64))
    (run / name).write_bytes(b"old weights")
    (run / "notes.txt").write_bytes(b"mine")
    fit(recipe, run, Own(), Points(64), force=True)
    assert not (run / name).exists()
    assert (run / "notes.txt").exists()
