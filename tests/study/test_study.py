"""Studies: statistics agree with exact values, runs survive a kill, tables show the results."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.paths import TESTS
from helpers.studies import _small

import backspike as bs
from backspike import cli
from backspike.errors import StudyError
from backspike.models import ConvNet
from backspike.recipes.values import Mean
from backspike.run import Run
from backspike.study import figures, included, page, progress, results, runner, shipped, statistics
from backspike.study.spec import Arm, Study
from backspike.surrogate import Triangle

# ---- devices ---------------------------------------------------------------------------------


@pytest.fixture
def attempted(monkeypatch, tmp_path):
    """The arguments of every run, which does not take place; two processors."""
    seen = []

    def run(function, work, n, *, places, **_):
        for i, job in enumerate(work):
            seen.append((job[0].arm, *places[i % len(places)]))
            yield job, "result", None

    monkeypatch.setattr(runner.workers, "run", run)
    monkeypatch.setattr(runner, "processors", lambda: 2)
    monkeypatch.setattr(runner, "write", lambda *a: tmp_path / "page")
    monkeypatch.setattr("backspike.train.setup.choose_device", lambda name: name)
    return seen


def test_runs_are_divided_among_devices(attempted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    runner.run(_small(), tmp_path / "s", seeds=2, device="cuda:0,cuda:1")
    assert [device for _, device in attempted] == ["cuda:0", "cuda:1"] * 2
    attempted.clear()
    runner.run(_small(), tmp_path / "t", seeds=2, device="cpu")
    assert {device for _, device in attempted} == {"cpu"}


@pytest.mark.parametrize(("devices", "code"), [("cuda:0,gpu", 2), ("cuda:0,", 2), ("cuda:7", 1)])
def test_devices_that_do_not_exist_are_refused_before_any_run(tmp_path, capsys, devices, code):
    if torch.cuda.is_available() and code == 1:
        pytest.skip("a GPU is present")
    words = ["study", "ablation", "--device", devices, "--out", str(tmp_path / "s")]
    assert cli.main(words) == code
    assert not (tmp_path / "s" / "runs").exists()
    assert capsys.readouterr().err.count("\n") == 1


# ---- statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [
        # printed tables
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 4, 2.77645),
        (0.975, 9, 2.26216),
        (0.975, 30, 2.04227),
        (0.995, 6, 3.70743),
        (0.95, 5, 2.01505),
        (0.9, 10, 1.37218),
        # closed forms: df 1 is Cauchy, df 2 is t = a sqrt(2 / (1 - a^2)) with a = 2p - 1
        (0.75, 1, 1.0),
        (0.9, 2, 0.8 * math.sqrt(2 / 0.36)),
    ],
)
def test_t_quantile_agrees_with_tables_and_closed_forms(p, df, expected):
    assert statistics.t_quantile(p, df) == pytest.approx(expected, rel=3e-6)
    assert statistics.t_quantile(1 - p, df) == pytest.approx(-expected, rel=3e-6)


def test_t_quantile_approaches_the_normal_quantile_and_rejects_bad_arguments():
    assert statistics.t_quantile(0.975, 100_000) == pytest.approx(
        1.959964 + 2.37 / 100_000, rel=1e-5
    )
    assert statistics.t_quantile(0.5, 3) == 0
    with pytest.raises(ValueError, match="p in"):
        statistics.t_quantile(1.0, 3)


def _brute(d):
    sums = [
        abs(sum(s * v for s, v in zip(signs, d)))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return sum(s >= abs(sum(d)) - 1e-9 for s in sums) / len(sums)


@pytest.mark.parametrize(
    ("d", "p"),
    [
        ([1, 2, 3], 2 / 8),
        ([1, -1], 1.0),
        ([0, 0], 1.0),
        ([5], 1.0),
        ([1, 1, 1, 1, -1], 12 / 32),
        ([3, 0], 1.0),
        ([2, 2, 0], 0.5),
    ],
)
def test_sign_flip_agrees_with_values_by_hand(d, p):
    assert statistics.sign_flip(d) == (p, True)


@pytest.mark.parametrize("n", [2, 5, 9, 11])
def test_sign_flip_agrees_with_brute_force(n):
    draw = np.random.default_rng(n)
    for scale in (1.0, 1 / 360):
        # like accuracies, multiples of one image have ties
        d = (draw.integers(-4, 9, n) * scale).tolist()
        assert statistics.sign_flip(d)[0] == pytest.approx(_brute(d))


def test_sign_flip_draws_patterns_if_there_are_too_many():
    d = [1.0] * 18 + [-1.0] * 7
    p, exact = statistics.sign_flip(d)
    assert not exact
    assert statistics.sign_flip(d)[0] == p
    binomial = 2 * sum(math.comb(25, k) for k in range(8)) / 2**25
    assert p == pytest.approx(binomial, abs=4 * math.sqrt(binomial / statistics.DRAWS))
    assert (
        statistics.sign_flip([1.0] * 21)[0]
        >= statistics.smallest_p(21)
        == 1 / (statistics.DRAWS + 1)
    )


@pytest.mark.parametrize("n", [1, 2, 5, 6, 12, 20])
def test_equal_differences_reach_the_smallest_p(n):
    assert (
        statistics.sign_flip([0.25] * n) == (2 / 2**n, True)
        if n > 1
        else statistics.smallest_p(1) == 1
    )
    assert statistics.smallest_p(n) == 2 / 2**n


def test_paired_agrees_with_values_by_hand():
    d = statistics.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (d.n, d.mean, d.p, d.exact) == (3, 2.0, 0.25, True)
    assert d.high - d.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert d.mean - d.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert d.noise
    assert not statistics.paired([2.0, 2.1, 1.9], [1.0, 1.0, 1.0]).noise
    assert math.isnan(statistics.paired([1.0], [0.0]).low)
    assert statistics.paired([1.0], [0.0]).noise
    assert not statistics.paired([1.0, 1.0], [0.0, 0.0]).noise
    with pytest.raises(ValueError, match="zip"):
        statistics.paired([1.0, 2.0], [1.0])


def _numbers(**more):
    return lambda: {
        "last": 0.0,
        "spikes_per_image": 1.0,
        "firing_rate": 0.5,
        "seconds_per_epoch": 2.0,
        **more,
    }


def test_summary_pairs_by_seed():
    """Each of two arms lacks another seed: means over all runs, differences over common seeds."""
    values = {("plain", 0): 0.5, ("plain", 1): 0.7, ("masked", 1): 0.8, ("masked", 2): 0.2}
    found = [
        SimpleNamespace(arm=a, seed=s, numbers=_numbers(best=v, last=v / 2))
        for (a, s), v in values.items()
    ]
    plain, masked = results.summary(_small(), found)
    assert (plain["best"]["mean"], plain["best"]["sd"]) == pytest.approx((0.6, math.sqrt(0.02)))
    assert (masked["best"]["mean"], masked["last"]["mean"]) == pytest.approx((0.5, 0.25))
    assert "difference" not in plain["best"]
    assert masked["best"]["difference"]["n"] == 1
    assert masked["best"]["difference"]["mean"] == pytest.approx(0.1)
    assert masked["last"]["difference"]["mean"] == pytest.approx(0.05)


def _row(arm, best, differences=None):
    d = (
        None
        if differences is None
        else statistics.paired(differences, [0.0] * len(differences))._asdict()
    )
    values = {"values": best, "mean": sum(best) / len(best), "sd": 0.01}
    one = {"last": dict(values), "best": dict(values)}
    if d:
        for kind in one.values():
            kind["difference"] = d
    return {"arm": arm, "against": "base" if d else None, "n": len(best), **one} | dict.fromkeys(
        ("firing_rate", "spikes_per_image", "seconds_per_epoch"), 0.125
    )


def test_sentences_state_noise_and_the_smallest_p():
    flat, up = [0.01, -0.01, 0.0, 0.02, -0.03], [0.01, 0.012, 0.011, 0.009, 0.01]
    rows = [
        _row("base", [0.9]),
        _row("flat", [0.9], flat),
        _row("up", [0.9], up),
        _row("down", [0.9], [-v for v in up]),
    ]
    lines = page.sentences(rows, 5)
    assert lines[0].startswith("flat against base: −0.20 points")
    assert lines[0].endswith("within the noise.")
    assert "better by the interval" in lines[1]
    assert "p cannot be smaller" in lines[1]
    assert "worse by the interval" in lines[2]
    assert "smallest p that the test can give is 0.062" in lines[3]
    assert "at least 6 seeds" in lines[3]
    assert "3 comparisons" in lines[3]
    eight = page.sentences(
        [_row("up", [0.9], [0.01, 0.012, 0.011, 0.009, 0.01, 0.01, 0.011, 0.012])], 8
    )
    assert eight[0].endswith("p = 0.0078: better.")
    assert "0.0078" in eight[1]
    assert "at least" not in eight[1]
    assert "prove nothing" in page.sentences(rows, 1)[0]


# ---- definition ------------------------------------------------------------------------------


def test_invalid_studies_are_rejected():
    with pytest.raises(StudyError, match="different names"):
        _small(arms=(Arm("plain"), Arm("plain")))
    with pytest.raises(StudyError, match="must be compared with one of them"):
        _small(baseline="nobody")
    with pytest.raises(StudyError, match="is a folder name"):
        Arm("../up")
    for field in ("neuron.surrogate", "neuron.surrogate.alpha", "neuron"):
        with pytest.raises(StudyError, match="differ in"):
            _small().replace({field: "Triangle()"})
    assert _small().replace({"epochs": "3"}).base.epochs == 3


@pytest.mark.parametrize("data", ["digits", "digits-dvs", "mnist", "cifar10"])
@pytest.mark.parametrize("name", [n for n in shipped.NAMES if n != "tsbp-toy"])
def test_shipped_studies_are_consistent(name, data):
    found = shipped.get(name, data)
    assert found.name == name
    assert found.about
    assert set(found.figures) <= {*figures.FIGURES, "gradients"}
    assert statistics.smallest_p(found.seeds) < 0.1
    json.dumps(found.settings())
    texts = [json.dumps(fields) for fields in found.settings()["arms"].values()]
    assert len(set(texts)) == len(texts), "two arms are the same"
    channels, side = {
        "digits": (1, 8),
        "digits-dvs": (2, 17),
        "mnist": (1, 28),
        "cifar10": (3, 32),
    }[data]
    for recipe in {found.recipe(arm).model: found.recipe(arm) for arm in found.arms}.values():
        network = recipe.network()
        x = torch.zeros(recipe.T, 2, channels, side, side)
        assert network(x).shape == (recipe.T, 2, 10)


def test_all_methods_share_the_baseline_and_the_runs_of_the_ablation():
    found, part = shipped.get("methods", "cifar10"), shipped.get("ablation", "cifar10")
    assert (found.base, found.baseline) == (part.base, part.baseline)
    assert found.arms[:4] == part.arms
    others = [found.base.replace(arm.changes) for arm in found.arms[1:]]
    assert found.base not in others
    assert len({r.neuron.reset_gradient for r in others}) == 2


def test_shipped_baselines_use_no_method():
    for name in ("ablation", "psg-pda", "gradient-scaling"):
        found = shipped.get(name)
        recipe = found.recipe(next(a for a in found.arms if a.name == found.baseline))
        assert isinstance(recipe.neuron.surrogate, Triangle)
        assert (recipe.readout, recipe.potential, recipe.scaling, recipe.weight_mask) == (
            Mean(),
            None,
            None,
            0.0,
        )


def test_a_seed_changes_no_other_field():
    small = _small()
    first, second = (small.recipe(small.arms[1], seed).to_dict()["fields"] for seed in (0, 3))
    assert {k for k in first if first[k] != second[k]} == {"seed"}


# ---- running ---------------------------------------------------------------------------------

FREE = ("seconds", "seconds_per_epoch")


def _results(out):
    """study.json without the values that differ between runs: times and folders."""

    def without(value):
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items() if k not in (*FREE, "run")}
        return [without(v) for v in value] if isinstance(value, list) else value

    return without(json.loads((out / "study.json").read_text()))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study of two arms and two seeds."""
    out = tmp_path_factory.mktemp("study") / "small"
    events = []
    runner.run(_small(), out, seeds=2, jobs=1, listen=events.append)
    return out, events


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    return tmp_path / "copy"


def _stamps(out):
    return {
        p.parent.relative_to(out): p.stat().st_mtime_ns
        for p in sorted(out.glob("runs/*/*/last.ckpt"))
    }


def test_a_study_runs_and_continues_on_windows(windows, tmp_path):
    out, events = tmp_path / "study", []
    for _ in range(2):
        runner.run(_small(), out, seeds=1, jobs=1, listen=events.append)
    assert [e["event"] for e in events if e["event"] in ("run", "done")] == [
        *("run", "run", "done"),
        "done",
    ]
    assert not list(out.rglob(".*.tmp"))


def test_events_report_the_progress(done):
    events = done[1]
    assert [e["event"] for e in events if e["event"] != "progress"] == [
        "study",
        *["run"] * 4,
        "done",
    ]
    shares = [e["share"] for e in events if e["event"] == "progress"]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1)
    runs = [e for e in events if e["event"] == "run"]
    # one seed of every arm before the next seed
    assert [(e["arm"], e["seed"]) for e in runs] == [
        ("plain", 0),
        ("masked", 0),
        ("plain", 1),
        ("masked", 1),
    ]
    assert runs[-1]["seconds_left"] == 0


def test_run_folders_are_ordinary_and_without_report(done):
    folder = done[0] / "runs" / "masked" / "1"
    # fields that the recipe leaves to the machine
    chosen = {"precision": "float32", "channels_last": True}
    assert Run.open(folder).recipe() == _small().recipe(_small().arms[1], 1).replace(chosen)
    assert (folder / "model.safetensors").exists()
    assert not (folder / "report.html").exists()


def test_a_finished_study_is_not_trained_again(copy):
    before, results = _stamps(copy), _results(copy)
    events = []
    runner.run(_small(), copy, seeds=2, listen=events.append)
    assert [e["event"] for e in events] == ["study", "done"]
    assert events[0]["left"] == 0
    assert (_stamps(copy), _results(copy)) == (before, results)


def test_only_an_incomplete_run_is_continued(copy):
    before, results = _stamps(copy), _results(copy)
    torn = copy / "runs" / "masked" / "0"
    lines = (torn / "log.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "done"
    (torn / "log.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:10])
    # one was killed before its first checkpoint, another before its recipe was written
    (copy / "runs" / "plain" / "1" / "last.ckpt").unlink()
    (copy / "runs" / "plain" / "1" / "log.jsonl").unlink()
    (copy / "runs" / "masked" / "1" / "recipe.json").unlink()
    for name in ("study.json", "study.html", "table.md"):
        (copy / name).unlink() if name != "study.json" else None
    runner.run(_small(), copy, seeds=2, jobs=1)
    assert _results(copy) == results
    assert (copy / "table.md").exists()
    assert _stamps(copy)[Path("runs/plain/0")] == before[Path("runs/plain/0")]


def test_more_seeds_extend_the_same_study(copy):
    before = _stamps(copy)
    runner.run(_small(), copy, seeds=3, jobs=1)
    assert before.items() <= _stamps(copy).items()
    assert len(_stamps(copy)) == 6
    assert [row["n"] for row in _results(copy)["arms"]] == [3, 3]
    runner.run(_small(), copy, seeds=2)
    assert [row["n"] for row in _results(copy)["arms"]] == [2, 2]


# ---- runs from elsewhere ---------------------------------------------------------------------


def _without_figures(out):
    stored = _results(out)
    return {key: stored[key] for key in ("runs", "arms", "conclusions", "seeds")}


def test_included_runs_count_and_only_the_missing_ones_are_trained(copy, tmp_path):
    expected, elsewhere = _without_figures(copy), copy / "study.json"
    stored = json.loads(elsewhere.read_text())
    stored["runs"] = [run for run in stored["runs"] if run["seed"] == 0]
    (tmp_path / "first.json").write_text(json.dumps(stored))
    out = tmp_path / "second"
    runner.run(_small(), out, seeds=2, jobs=1, include=tmp_path / "first.json")
    assert list(_stamps(out)) == [Path("runs/masked/1"), Path("runs/plain/1")]
    assert _without_figures(out) == expected
    table = (out / "table.md").read_text()
    assert "2 of 4 runs are included from a study.json" in table
    # it can be included again, then without any folder
    runner.run(_small(), tmp_path / "third", seeds=2, jobs=1, include=out / "study.json")
    assert not _stamps(tmp_path / "third")
    assert _without_figures(tmp_path / "third") == expected
    assert (tmp_path / "third" / "figures" / "dots.svg").is_file()


def test_what_every_result_must_mention_survives_without_folders(copy, tmp_path):
    stored = json.loads((copy / "study.json").read_text())
    for run in stored["runs"]:
        run["data_note"] = "simulated: by a camera"
    (tmp_path / "s.json").write_text(json.dumps(stored))
    runner.run(_small(), tmp_path / "new", seeds=2, jobs=1, include=tmp_path / "s.json")
    assert "digits (simulated: by a camera)" in (tmp_path / "new" / "table.md").read_text()


def test_arms_of_a_study_with_another_name_are_included(copy, tmp_path):
    more = (*_small().arms[:1], Arm("STBP", {"neuron.reset_gradient": 0.0}))
    wider = dataclasses.replace(_small(arms=more), name="wider", baseline=more[0].name)
    out = tmp_path / "wider"
    runner.run(wider, out, seeds=1, jobs=1, include=copy / "study.json")
    assert list(_stamps(out)) == [Path("runs/STBP/0")]
    assert [row["n"] for row in _results(out)["arms"]] == [1, 1]


def test_a_field_younger_than_the_included_file_had_its_default(copy, tmp_path):
    stored = json.loads((copy / "study.json").read_text())
    del stored["settings"]["base"]["clip"]
    (tmp_path / "old.json").write_text(json.dumps(stored))
    included.read(tmp_path / "old.json", _small())
    with pytest.raises(StudyError, match=r"clip was 0\.0 and is 1\.0"):
        included.read(tmp_path / "old.json", _small().replace({"clip": 1.0}))


def test_a_file_of_another_python_file_is_included_only_if_that_is_accepted(copy, tmp_path):
    stored = json.loads((copy / "study.json").read_text())
    stored["settings"]["sha256"] = "0"
    (tmp_path / "s.json").write_text(json.dumps(stored))
    with pytest.raises(StudyError, match=r"another version.* accept_change=True"):
        included.read(tmp_path / "s.json", _small())
    out = tmp_path / "new"
    runner.run(_small(), out, seeds=2, include=tmp_path / "s.json", accept_change=True)
    assert not _stamps(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["settings"]["base"].update(epochs=7), "epochs was 7 and is 1"),
        (lambda s: s["settings"]["arms"]["masked"].update(epochs=7), None),
        (lambda s: s["settings"].update(arms={}), "no finished run of an arm of small"),
        (lambda s: s.pop("runs"), "no study.json of a finished study .'runs' is missing"),
        (lambda s: s["runs"][0].pop("best"), "'best' is missing"),
        (lambda s: s["runs"][0].update(best="0.9"), "best of plain seed 0 is not a number"),
        (lambda s: s["runs"][0].update(best=math.nan), "best of plain seed 0 is not a number"),
        (lambda s: s.update(runs=[3]), "no study.json of a finished study"),
    ],
)
def test_other_settings_and_damage_in_an_included_file(copy, tmp_path, change, message):
    stored = json.loads((copy / "study.json").read_text())
    change(stored)
    (tmp_path / "s.json").write_text(json.dumps(stored))
    if message is None:  # the other arm is still the same
        assert {arm for arm, _ in included.read(tmp_path / "s.json", _small())} == {"plain"}
        return
    with pytest.raises(StudyError, match=message) as caught:
        included.read(tmp_path / "s.json", _small())
    assert "\n" not in str(caught.value)


def test_another_study_in_the_folder_is_rejected_without_force(copy, tmp_path):
    with pytest.raises(StudyError, match=r"other settings \(epochs was 1 and is 2\).*force=True"):
        runner.run(_small(epochs=2), copy, seeds=2)
    with pytest.raises(StudyError, match="another study, small;"):
        runner.run(_small(name="other"), copy, seeds=2)
    with pytest.raises(StudyError, match="its arms are different"):
        runner.run(_small(arms=(Arm("plain"), Arm("masked", {"epochs": 2}))), copy, seeds=2)
    with pytest.raises(StudyError, match="at least 1 seed"):
        runner.run(_small(), copy, seeds=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(StudyError, match="holds other files"):
            runner.run(_small(), tmp_path / "mine", force=force)
    (copy / "study.json").write_text("{")
    with pytest.raises(StudyError, match="damaged"):
        runner.run(_small(), copy, seeds=2)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_force_replaces_another_study(copy):
    one = _small(epochs=2, arms=(Arm("plain"),))
    runner.run(one, copy, seeds=1, jobs=1, force=True)
    assert list(_stamps(copy)) == [Path("runs/plain/0")]
    assert _results(copy)["runs"][0]["epochs"] == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("torn", "evaluation.npz is damaged"),
        ("foreign", "evaluation.npz is damaged \\(confusion is missing\\)"),
        ("shapes", "evaluation.npz is damaged \\(membrane_counts has"),
        ("missing", "evaluation.npz is damaged"),
        ("done only", "log.jsonl is damaged \\(it has no epochs\\)"),
        ("no seconds", "log.jsonl is damaged \\(epoch 1 has no seconds\\)"),
        ("no accuracy", "log.jsonl is damaged \\(the event done has no test_accuracy\\)"),
        ("text", "log.jsonl is damaged \\(loss of epoch 1 is not a number\\)"),
    ],
)
def test_a_damaged_run_is_an_error_in_one_line(copy, damage, reason):
    run = copy / "runs" / "masked" / "0"
    file, log = run / "evaluation.npz", run / "log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    arrays = dict(np.load(file))
    match damage:
        case "torn":
            file.write_bytes(file.read_bytes()[:1000])
        case "foreign":
            np.savez(file, x=np.zeros(3))
        case "shapes":
            np.savez(file, **arrays | {"membrane_counts": arrays["membrane_counts"][:1]})
        case "missing":
            file.unlink()
        case "done only":
            events = events[-1:]
        case "no seconds":
            events = [{k: v for k, v in e.items() if k != "seconds"} for e in events]
        case "no accuracy":
            del events[-1]["test_accuracy"]
        case "text":
            events = [e | {"loss": "small"} for e in events]
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(StudyError, match=reason) as error:
        runner.run(_small(), copy, seeds=2)
    assert "\n" not in str(error.value)


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    arms = (Arm("plain"), Arm("broken", {"model": ConvNet("4-P-P", size=28)}))
    events = []
    with pytest.raises(
        StudyError,
        match="1 of 2 runs failed, the first: broken seed 0: the model does not take this data",
    ):
        runner.run(_small(arms=arms), tmp_path / "s", seeds=1, jobs=1, listen=events.append)
    assert [e["event"] for e in events if e["event"] != "progress"] == [
        "study",
        "run",
        "failed",
        "done",
    ]
    assert "1 runs failed" in (tmp_path / "s" / "study.html").read_text("utf-8")
    assert [row["n"] for row in _results(tmp_path / "s")["arms"]] == [1, 0]
    assert "| broken | 0 | – |" in (tmp_path / "s" / "table.md").read_text("utf-8")


# without `if __name__ == "__main__"`, because worker processes do not run the script again
SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
from backspike.study import runner
from helpers.studies import _small

# as many processes as cores: one thread each, as in the tests
tell = lambda e: print(e["event"], flush=True)
runner.run(_small(epochs=8), sys.argv[1], seeds=1, jobs=os.cpu_count(), listen=tell)
"""


def _gone(group, seconds=20.0):
    """Waits until all processes of the group have ended; False if they do not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_a_killed_study_continues_to_the_same_results(tmp_path):
    """SIGKILL ends the parent while workers train; they end too, and a second call finishes."""
    script, out = tmp_path / "script.py", tmp_path / "killed"
    script.write_text(SCRIPT.format(tests=str(TESTS)))
    words = [sys.executable, str(script), str(out)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if line.strip() == "progress":
                break
        process.kill()
    assert _gone(process.pid)
    begun = [Run(p).log() for p in out.glob("runs/*/*")]
    assert any(log[-1:] == [] or log[-1]["event"] != "done" for log in begun), (
        "nothing was interrupted"
    )
    runner.run(_small(epochs=8), out, seeds=1, jobs=1)
    runner.run(_small(epochs=8), tmp_path / "whole", seeds=1, jobs=1)
    assert _results(out) == _results(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("kill", marks=pytest.mark.slow)])
def test_a_stopped_study_ends_its_processes_and_says_how_to_continue(how, tmp_path):
    words = [
        "study",
        "reset-gradient",
        "--seeds",
        "1",
        "--epochs",
        "9999",
        "--limit",
        "100",
        "--jobs",
        "2",
        "--out",
        "s",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "backspike", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    end = time.monotonic() + 90
    while not list(tmp_path.glob("s/runs/*/0/log.jsonl")) and time.monotonic() < end:
        time.sleep(0.05)
    if how == "Ctrl-C":
        # to the whole group, like a terminal
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    text, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (
        errors == "backspike: stopped; finished runs are in s; "
        "to continue, repeat the command without --force\n"
    )
    assert text == "reset-gradient: 3 runs into s\n"
    assert _gone(process.pid)
    assert list(tmp_path.glob("s/runs/*/0/last.ckpt"))


def test_a_stopped_study_shows_the_runs_that_have_finished(tmp_path):
    def stop(event):
        if event["event"] == "run" and event["seed"] == 1:
            raise KeyboardInterrupt

    out = tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        runner.run(_small(), out, seeds=3, jobs=1, listen=stop)
    stopped = _results(out)
    assert [row["n"] for row in stopped["arms"]] == [2, 1]
    missing, compared = stopped["conclusions"]
    assert missing == "3 of 6 runs have not finished and are missing."
    assert compared.startswith("Only one seed can be compared")
    assert "3 of 6 runs have not finished" in (out / "study.html").read_text("utf-8")
    # the file serves another study, and this one continues
    runner.run(_small(), tmp_path / "t", seeds=2, jobs=1, include=out / "study.json")
    assert [p.parent.name for p in (tmp_path / "t").glob("runs/*/1")] == ["masked"]
    runner.run(_small(), out, seeds=3, jobs=1)
    assert [row["n"] for row in _results(out)["arms"]] == [3, 3]


def test_a_stopped_study_names_the_runs_that_failed(tmp_path):
    def stop(event):
        if event["event"] == "run" and event["seed"] == 1:
            raise KeyboardInterrupt

    arms = (Arm("plain"), Arm("broken", {"model": ConvNet("4-P-P", size=28)}))
    with pytest.raises(KeyboardInterrupt):
        runner.run(_small(arms=arms), tmp_path / "s", seeds=2, jobs=1, listen=stop)
    stopped = _results(tmp_path / "s")
    assert len(stopped["failed"]) == 1
    assert stopped["conclusions"][0].startswith("1 runs failed and are missing: broken seed 0")
    assert stopped["conclusions"][1] == "1 of 4 runs have not finished and are missing."


def test_a_killed_process_is_a_failed_run(tmp_path, monkeypatch):
    """As if the system ran out of memory: the run is named, and the other one finishes."""
    killed, started = [], []
    start, popen = progress.Clock.hear, subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )

    def hear(clock, job, event):
        start(clock, job, event)
        if event["event"] == "start" and not killed:
            killed.append(started[0].pid)
            os.kill(started[0].pid, signal.SIGKILL)

    monkeypatch.setattr(progress.Clock, "hear", hear)
    with pytest.raises(StudyError, match=r"1 of 2 runs failed.*ended with code -9"):
        runner.run(_small(), tmp_path / "s", seeds=1, jobs=2)
    assert sorted(row["n"] for row in _results(tmp_path / "s")["arms"]) == [0, 1]


# ---- outputs ---------------------------------------------------------------------------------


def test_numbers_are_those_of_the_run_folders(done):
    out = done[0]
    stored = json.loads((out / "study.json").read_text())
    for run in stored["runs"]:
        folder = out / run["run"]
        assert folder == out / "runs" / run["arm"] / str(run["seed"])
        log = Run.open(folder).log()
        assert run["last"] == log[-1]["test_accuracy_last"]
        assert run["best"] == log[-1]["test_accuracy"]
        arrays = np.load(folder / "evaluation.npz")
        spikes = (arrays["firing_rate"].sum(1) * [4 * 64, 8 * 16]).sum()
        assert run["spikes_per_image"] == pytest.approx(spikes)
        assert run["firing_rate"] == pytest.approx(spikes / (4 * (4 * 64 + 8 * 16)))
    by = {(r["arm"], r["seed"]): r for r in stored["runs"]}
    masked = next(row for row in stored["arms"] if row["arm"] == "masked")
    for kind in ("last", "best"):
        a, b = ([by[arm, seed][kind] for seed in (0, 1)] for arm in ("masked", "plain"))
        assert masked[kind]["mean"] == pytest.approx(sum(a) / 2)
        assert masked[kind]["sd"] == pytest.approx(abs(a[0] - a[1]) / math.sqrt(2))
        assert masked[kind]["difference"]["mean"] == pytest.approx((a[0] - b[0] + a[1] - b[1]) / 2)
    assert stored["smallest_p"] == 0.5


def test_tables_show_the_numbers(copy):
    out = copy
    for i, log in enumerate(sorted(out.glob("runs/*/*/log.jsonl"))):
        lines = log.read_text().splitlines()
        text = {
            **json.loads(lines[-1]),
            "test_accuracy": 0.9 - 0.03 * i,
            "test_accuracy_last": 0.8 - 0.05 * i**2,
        }
        log.write_text("\n".join([*lines[:-1], json.dumps(text)]) + "\n")
    runner.run(_small(), out, seeds=2)
    rows = json.loads((out / "study.json").read_text())["arms"]
    lines = (out / "table.md").read_text("utf-8").splitlines()
    assert lines[0].startswith("| arm | runs | last epoch, % |")
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert len(cells) == len(page.HEAD)
    assert cells[:2] == ["masked", "2"]
    assert cells[2] == "77.50 ± 3.54"  # 0.80 and 0.75
    assert cells[3].startswith("+30.00 [")  # the plain ones last: 0.60 and 0.35
    assert cells[5] == "88.50 ± 2.12"
    assert cells[6].startswith("+6.00 [")
    assert cells[2] == f"{100 * rows[1]['last']['mean']:.2f} ± {100 * rows[1]['last']['sd']:.2f}"
    assert cells[3].startswith(
        f"{100 * rows[1]['last']['difference']['mean']:+.2f} [".replace("-", "−")
    )
    # both pairs have the same difference: the interval is a point, which 2 seeds cannot confirm
    assert "+6.00 points, 95 % interval +6.00 to +6.00, p = 0.5: better by the interval" in "".join(
        lines
    )
    tex = (out / "table.tex").read_text("utf-8")
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    assert all(line.count(" & ") == len(page.HEAD) - 1 for line in body)
    assert r"$\pm$" in body[1]
    assert "±" not in "".join(body)
    assert "−" not in "".join(body)
    assert r"last epoch, \%" in body[0]


def test_the_page_is_self_contained_and_escaped(copy):
    evil = _small(about="<script>alert(1)</script> & <b>")
    runner.run(evil, copy, seeds=2)
    page = (copy / "study.html").read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page.replace("xlink:href", "xlink"))
    assert "Masked(base=Triangle(alpha=2.0" in page
    pictures = sorted(p.stem for p in (copy / "figures").iterdir())
    assert pictures == ["dots", "loss", "seconds", "training", "validation"]
    assert page.count("<svg") == len(pictures)
    for p in (copy / "figures").iterdir():
        text = p.read_text("utf-8")
        assert xml.dom.minidom.parseString(text).documentElement.tagName == "svg"
        assert "var(" not in text
        assert "#0100" not in text
    assert "masked" in (copy / "figures" / "loss.svg").read_text("utf-8")


def test_without_a_validation_set_there_is_no_picture_of_it(tmp_path):
    sets = bs.data.load("digits", limit=100)
    one = _small(arms=(Arm("plain"),)).replace({"limit": 0})
    runner.run(one, tmp_path / "s", seeds=1, jobs=1, train=sets.train, test=sets.test)
    drawn = {p.stem for p in (tmp_path / "s" / "figures").iterdir()}
    assert drawn == {"dots", "training", "loss", "seconds"}


def test_every_kind_of_figure_can_be_drawn(tmp_path):
    base = _small()
    wide, narrow, learned = (
        "Triangle(alpha=0.2)",
        "Triangle(alpha=1e6)",
        "Parametric(Triangle(alpha=2.0))",
    )
    arms = (
        Arm("wide", {"neuron.surrogate": wide}, x=5.0, line="a"),
        Arm("narrow", {"neuron.surrogate": narrow}, x=1e-6, line="a"),
        Arm("masked", {"neuron.surrogate": f"Masked({wide}, p=0.25)"}, x=5.0, line="b"),
        Arm("learned", {"neuron.surrogate": learned, "readout": "TWO(start_epoch=0)"}),
        Arm("shallow", {"model": "ConvNet('4-P', size=8)"}),
    )
    drawn = (*figures.FIGURES, "gradients")
    every = Study("every", "", base.base, arms, "wide", drawn, xlabel="width", log_x=True)
    runner.run(every, tmp_path / "s", seeds=1, jobs=1)
    drawn = {p.stem for p in (tmp_path / "s" / "figures").iterdir()}
    expected = {
        "dots",
        "sweep-last",
        "sweep-best",
        "training",
        "validation",
        "loss",
        "seconds",
        "firing",
        "weights-learned",
    }
    assert drawn == expected | {
        "widths-learned",
        "membranes-0",
        "membranes-1",
        "spikes",
        "gradients",
        "derivatives",
    }
    # all potentials lie within the wide surrogate, none within the narrow one; a quarter is masked
    shares = {row["arm"]: row for row in _results(tmp_path / "s")["gradient_shares"]}
    assert set(shares) == {"wide", "narrow", "masked", "learned"}, (
        "potentials are the same in the same network only"
    )
    assert shares["wide"]["neurons"] == 1
    assert shares["narrow"]["neurons"] < 0.01
    assert shares["masked"]["neurons"] == pytest.approx(0.75, abs=0.02)
    assert shares["wide"]["weights"] > shares["narrow"]["weights"]
    assert shares["wide"]["weights_batch"] >= shares["wide"]["weights"]
    assert all(sum(row["histogram"]) == pytest.approx(1, abs=1e-6) for row in shares.values())


# ---- the command -----------------------------------------------------------------------------


def test_the_command_lists_studies(capsys):
    assert cli.main(["study"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(shipped.NAMES)
    assert cli.main(["study", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["name"] == "ablation"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], "unknown study 'nothing'"),
        (["ablaton"], "did you mean ablation?"),
        (["ablation", "--readout", "Last()"], "the arms of ablation differ in readout"),
        (["ablation", "--data", "imagenet"], "there are no studies for the data set 'imagenet'"),
        (["ablation", "--epochs", "many"], "epochs must be a whole number"),
        (["tsbp-toy", "--epochs", "3"], "leave --epochs out"),
        (["tsbp-toy", "--include", "study.json"], "leave --include out"),
        (["ablation", "--seeds", "x"], "must be a whole number"),
    ],
)
def test_wrong_commands_are_errors_in_one_line(words, text, capsys):
    assert cli.main(["study", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_command_includes_runs(copy, tmp_path, capsys):
    words = ["study", "ablation", "--out", str(tmp_path / "new")]
    for file, text in (
        (tmp_path / "none.json", "No such file"),
        (copy / "study.json", "other settings"),
    ):
        assert cli.main([*words, "--include", str(file)]) == 1
        error = capsys.readouterr().err
        assert text in error
        assert str(file) in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_the_command_runs_a_study_and_prints_how_to_reproduce_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "study",
        "reset-gradient",
        "--seeds",
        "1",
        "--epochs",
        "1",
        "--limit",
        "100",
        "--batch_size",
        "50",
        "--jobs",
        "1",
    ]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"^1/3  spatial only, seed 0: test \d+\.\d\d %, last epoch .* left$", text, re.M
    )
    assert text.endswith(f"study: {Path('studies/reset-gradient-digits/study.html')}\n")
    command = re.search(r"Command: backspike (.*)", text)[1].split()
    assert sorted(command) == sorted([*words[:-2], "--data", "digits"])
    assert cli.main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == ["study", "done"]


def test_the_command_without_a_study_does_not_load_torch():
    for words in (["study"], ["study", "--help"]):
        script = (
            f"import sys, backspike.cli as c\ntry: c.main({words})\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
