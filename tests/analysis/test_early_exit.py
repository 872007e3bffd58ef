"""Early exit: its curve agrees with exits by hand; choice of the threshold, file and figure."""

import json
import math

import numpy as np
import pytest
import torch
from helpers.reports import Page, make_run
from helpers.training import tiny

import backspike as bs
from backspike import errors, report
from backspike.analysis import early_exit
from backspike.analysis.activity import answers_over_time
from backspike.analysis.early_exit import Split
from backspike.cli import main
from backspike.errors import RunError
from backspike.report import read, results


def split(right, sure):
    return Split(
        torch.tensor(right, dtype=torch.bool),
        {"confidence": torch.tensor(sure, dtype=torch.float64)},
    )


# T = 3 steps, four samples: whether the answer is right, and its confidence
RIGHT = [[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
SURE = [[0.9, 0.6, 0.2, 0.8], [0.5, 0.7, 0.3, 0.9], [0.9, 0.9, 0.4, 0.9]]


def test_exits_agree_with_exits_by_hand():
    """At 0.65 the samples stop after 1, 2, 3 and 1 steps; the third never reaches it."""
    s = split(RIGHT, SURE)
    assert s.accuracy() == [0.5, 0.5, 0.75]
    steps, accuracy = s.exits(
        "confidence", torch.tensor([0.0, 0.65, 0.85, 2.0], dtype=torch.float64)
    )
    assert steps.tolist() == [1, (1 + 2 + 3 + 1) / 4, (1 + 3 + 3 + 2) / 4, 3]
    assert accuracy.tolist() == [0.5, 1.0, 0.75, 0.75]


def test_the_threshold_is_the_earliest_without_more_validation_mistakes():
    """Between 0.3 and 0.6, the first, second and fourth sample exit after one step. The third exits
    after three, when it is first right. The test set does not influence the choice.
    """
    validation = split(RIGHT, SURE)
    for test in (validation, split([[0, 0], [1, 1], [1, 1]], [[0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])):
        c = early_exit.curve(validation, test, "confidence")
        assert c.validation_accuracy[c.chosen] >= c.validation_accuracy[-1] == 0.75
        as_good = [n for n, a in zip(c.validation_steps, c.validation_accuracy) if a >= 0.75]
        assert c.validation_steps[c.chosen] == min(as_good) == 1.5
        assert 0.3 < c.threshold[c.chosen] <= 0.6
    assert (c.steps[c.chosen], c.accuracy[c.chosen]) == (1.0, 0.0)
    assert (c.steps[-1], c.accuracy[-1]) == (3.0, 1.0)


def test_confidence_and_margin_agree_with_values_by_hand():
    answers = torch.tensor([[0.0, math.log(3), math.log(4)]])
    assert early_exit.confidence(answers).item() == pytest.approx(4 / 8)
    assert early_exit.margin(answers).item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("how", ["mean", "last", "two"])
def test_answers_over_time_are_those_of_a_shorter_readout(how):
    """They agree with the readout of fewer timesteps; TWO keeps its weights for all T."""
    o, T = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0)), 5
    readout = {"mean": bs.readout.Mean(), "last": bs.readout.Last(), "two": bs.readout.TWO(T)}[how]
    if how == "two":
        readout.weights.copy_(torch.tensor([0.5, 0.75, 1.0, 1.25, 1.5]))
    over_time = answers_over_time(o, readout)
    for t in range(1, T + 1):
        short = readout
        if how == "two":
            short = bs.readout.TWO(t)
            short.weights.copy_(readout.weights[:t])
        assert torch.allclose(over_time[t - 1], short(o[:t]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anytime") / "run"
    bs.fit(
        tiny(limit=300, epochs=2, readout="TWO(start_epoch=0)", **{"optimizer.lr": 0.02}),
        folder,
        report=False,
    )
    return folder


def test_eval_anytime_writes_the_curve_and_the_report_shows_it(run, capsys):
    assert main(["eval", str(run), "--anytime", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    written = json.loads((run / "anytime.json").read_text())
    assert written == said["anytime"]
    assert written["accuracy"] == pytest.approx(said["accuracy_over_time"], abs=0.01)
    assert (written["validation_samples"], written["test_samples"]) == (180, 360)
    for c in written["exit"].values():
        assert c["steps"][0] == pytest.approx(1, abs=0.1)
        assert c["steps"][-1] == 4
        assert c["accuracy"][-1] == written["accuracy"][-1]
        assert c["steps"] == sorted(c["steps"])
        assert c["threshold"] == sorted(c["threshold"])
    page = Page(report.write(run))
    assert {"early-exit", "fig-early-exit", "energy"} <= {*page.ids}
    c = written["exit"]["margin"]
    assert f"{c['steps'][c['chosen']]:.2f} of 4" in page.text
    assert main(["eval", str(run), "--anytime"]) == 0
    assert "early exit by margin of at least" in capsys.readouterr().out


def test_eval_without_anytime_keeps_the_file(run):
    before = (run / "anytime.json").read_bytes()
    bs.evaluate(run)
    assert (run / "anytime.json").read_bytes() == before


def test_early_exit_needs_a_validation_split(run):
    data = bs.data.load("digits")
    with pytest.raises(RunError, match="give validation=, as to fit"):
        bs.evaluate(run, test=data.test, anytime=True)
    result = bs.evaluate(run, test=data.test, validation=data.validation, anytime=True)
    assert result["anytime"] == json.loads((run / "anytime.json").read_text())


@pytest.mark.parametrize(
    "damage",
    [
        {"exit": {"margin": {"steps": [1, 2], "accuracy": [0.5]}}},
        {"exit": [1]},
        {"accuracy": ["<b>", None]},
        {"validation_accuracy": "no"},
        {"exit": {"<script>": {"chosen": 7}}},
    ],
    ids=str,
)
def test_the_page_survives_a_malformed_file(tmp_path, damage):
    run = make_run(tmp_path / "run")
    made = early_exit.measured(
        *[
            Split(
                torch.rand(8, 20) < 0.5,
                {m: torch.rand(8, 20).double() for m in early_exit.MEASURES},
            )
        ]
        * 2
    )
    (run / "anytime.json").write_text(json.dumps(made | damage))
    section = results.early_exit(read.load_run(run))
    assert "nan" not in str(section.body)
    report.write(run)
    assert "<script>" not in (run / "report.html").read_text("utf-8")


def test_a_truncated_file_is_an_error_in_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "anytime.json").write_text('{"accuracy": [0.5, ')
    with pytest.raises(
        errors.ReportError,
        match=r"anytime.json: damaged .* write it again with `backspike eval --anytime`",
    ):
        report.write(run)


def test_all_samples_are_evaluated(run):
    """The accuracy is a multiple of 1/360, for 360 test samples."""
    assert np.isclose(
        json.loads((run / "anytime.json").read_text())["accuracy"][-1] * 360 % 1, [0, 1], atol=1e-6
    ).any()
