"""The model card: front matter that the hub reads, facts of the runs, and what is unknown."""

import hashlib
import json
import math
import re
import statistics

import pytest
import torch
from helpers.reports import make_run
from helpers.training import tiny

import backspike as bs
from backspike.cli import main
from backspike.errors import ReportError, RunError
from backspike.report import card
from backspike.system.files import is_sealed

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def run(tmp_path):
    """A run folder without weights of a network, which the card only sums up."""
    return run_with(tmp_path / "run")


def run_with(path, accuracy=0.9722, validation=0.983, **fields):
    make_run(path, **fields)
    (path / "model.safetensors").write_bytes(b"weights")
    log = path / "log.jsonl"
    *epochs, done = log.read_text().splitlines()
    changed = json.loads(done) | {"test_accuracy": accuracy, "validation_accuracy": validation}
    log.write_text("\n".join([*epochs, json.dumps(changed)]) + "\n")
    return path


def write(*runs, **options):
    return card.write(runs, runs[0] / "README.md", **options).read_text("utf-8")


def test_the_hub_reads_the_front_matter(run):
    data = hub.ModelCard(write(run, licence="MIT")).data
    assert (data.license, data.library_name) == ("mit", "backspike")
    assert data.datasets == ["digits-dvs"]
    assert "spiking-neural-network" in data.tags
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9722)
    assert (result.dataset_name, result.dataset_split) == ("digits-dvs", "test")
    assert data.pipeline_tag is None  # of recordings; of images it is image-classification


def test_a_trained_run_has_a_card(tmp_path):
    bs.fit(tiny(epochs=1), tmp_path / "run", report=False)
    text = write(tmp_path / "run")
    data = hub.ModelCard(text).data
    assert (data.pipeline_tag, data.license) == ("image-classification", "unknown")
    done = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert data.eval_results[0].metric_value == done["test_accuracy"]
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in text
    assert "[T, B, 1, 8, 8\\] with T = 4: pixel values from 0 to 1" in text
    assert "The test set has 360 samples" in text
    assert f"torch {torch.__version__}, " in text


def test_one_seed_has_no_spread(run):
    text = write(run)
    assert "This is one seed: how much the accuracy varies between seeds is not known." in text
    assert "±" not in text


def test_several_seeds_have_mean_and_standard_deviation(tmp_path, run):
    accuracies = [0.9722, 0.95, 0.99]
    others = [run_with(tmp_path / f"{s}", accuracies[s], 0.97, seed=s) for s in (1, 2)]
    text = write(run, *others)
    mean, spread = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert math.isclose(spread, 0.0200, abs_tol=1e-4)
    assert f"Over 3 seeds, the test accuracy is {100 * mean:.2f} % ± {100 * spread:.2f} %" in text
    assert "| 2 | 99.00 % | 97.00 % | 27 of 30 |" in text
    assert "those of seed 0; none of these runs has a higher validation accuracy." in text
    assert "none of these runs" not in write(others[0], run)


def test_other_recipes_and_repeated_seeds_are_refused(tmp_path, run):
    other = run_with(tmp_path / "other", seed=1, epochs=29)
    (other / "recipe.json").write_text((other / "recipe.json").read_text().replace("30", "29"))
    with pytest.raises(ReportError, match="has another epochs than"):
        write(run, other)
    with pytest.raises(ReportError, match="two of these runs have seed 0"):
        write(run, run)
    workers = run_with(tmp_path / "workers", seed=1, workers=2)
    assert "Over 2 seeds" in write(run, workers)


def test_an_unfinished_run_is_refused(tmp_path):
    make_run(tmp_path / "early", finished=False)
    (tmp_path / "early" / "model.safetensors").write_bytes(b"weights")
    make_run(tmp_path / "bare")
    for name in ("early", "bare"):
        with pytest.raises(ReportError, match="is not finished; finish it with: backspike resume"):
            write(tmp_path / name)


def test_what_is_not_known_is_said(run):
    (run / "env.json").unlink()
    (run / "evaluation.npz").unlink()
    text = write(run)
    assert "The command was not recorded." in text
    assert "The versions were not recorded." in text
    assert "The number of test samples is not known." in text
    assert "No licence was given" in text


def test_simulated_data_are_called_so(run):
    assert "\n**Simulated event camera recordings.**\n" in write(run)


def test_own_model_and_data_are_not_described_by_the_recipe(run):
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps({**recipe, "own": ["model", "data"]}))
    text = write(run)
    assert "ConvNet" not in text
    assert "digits-dvs" not in text
    assert 'bs.load("FOLDER", model=YourNetwork())' in text
    assert hub.ModelCard(text).data.datasets is None


def test_the_interval_is_wilsons(run):
    """Newcombe 1998, table I: of 81 of 263, 25.53 to 36.62 %."""
    from backspike.report.results import wilson

    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    samples = 10 * 35 - 4 + 6  # of the fabricated confusion matrix
    low, high = wilson(round(0.9722 * samples), samples)
    assert f"95 % interval of {100 * low:.2f} % to {100 * high:.2f} %" in write(run)


@pytest.mark.parametrize(
    "name", ["a|b\nc", "---\nlicense: mit\n---", "<script>alert(1)</script>", '"}\n{{ x }}', "`x`"]
)
def test_hostile_names_stay_text(run, name):
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["name"], recipe["fields"]["model"] = name, name
    (run / "recipe.json").write_text(json.dumps(recipe))
    text = write(run)
    found = hub.ModelCard(text)
    assert found.data.license == "unknown"
    assert found.data.model_name == name
    body = found.text
    assert "\n---\n" not in body
    assert not re.search(r"(?<!\\)<script", re.sub(r"`[^`\n]*`", "", body))
    rows = [line for line in body.splitlines() if line.startswith("| network")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3


def test_a_card_is_replaced_unless_it_was_edited(run, capsys):
    path = run / "README.md"
    assert main(["card", str(run)]) == 0
    assert main(["card", str(run), "--licence", "cc-by-4.0"]) == 0
    assert 'license: "cc-by-4.0"' in path.read_text()
    edited = path.read_text().replace("# digits", "# My digits")
    for own in (edited, "# Mine\n", ""):
        path.write_text(own)
        capsys.readouterr()
        assert main(["card", str(run)]) == 1
        assert "is not a card as it was written here; move it, or" in capsys.readouterr().err
        assert path.read_text() == own
    assert main(["card", str(run), "--force"]) == 0
    assert is_sealed(path.read_bytes())


def test_a_wrong_licence_is_one_line(run, capsys):
    assert main(["card", str(run), "--licence", "mine: all\nmine"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("backspike: licence must be an identifier of the hub such as apache-2.0")
    assert len(err.splitlines()) == 1
    assert not (run / "README.md").exists()


def test_training_again_removes_the_old_card_but_no_other_readme(tmp_path):
    for text, stays in (("# Mine\n", True), (None, False)):
        out = tmp_path / str(stays)
        bs.fit(tiny(epochs=1), out, report=False)
        write(out) if text is None else (out / "README.md").write_text(text)
        bs.fit(tiny(epochs=1), out, report=False, force=True)
        assert (out / "README.md").exists() == stays


def test_training_again_refuses_beside_an_edited_card(tmp_path):
    out = tmp_path / "run"
    bs.fit(tiny(epochs=1), out, report=False)
    edited = write(out).replace("# digits", "# My digits")
    (out / "README.md").write_text(edited)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(RunError, match=r"is the card of the old run, edited since; move"):
        bs.fit(tiny(epochs=1), out, report=False, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_json_names_the_card(run, capsys):
    assert main(["card", str(run), "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line == {"event": "done", "card": str(run / "README.md")}
