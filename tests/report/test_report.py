"""Reports of made-up run folders: complete, interrupted, hostile, damaged; and in a browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reports import Page, make_run

from backspike import errors, report
from backspike.report import chart, format, read, results
from backspike.report.samples import _pixels

FIGURES = {
    "fig-accuracy",
    "fig-loss",
    "fig-readout-weights",
    "fig-over-time",
    "fig-confusion",
    "fig-widths",
    "fig-firing-rate",
    "fig-firing-epochs",
    "fig-membrane-0",
    "fig-membrane-1",
    "fig-membrane-2",
    "fig-support-share",
    "fig-support-epochs",
    "fig-sample-0",
    "fig-sample-3",
}
FORBIDDEN = {"script", "iframe", "object", "embed", "base", "form"}


def assert_self_contained(page: Page) -> None:
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.source))
    assert len(page.source) < 3_000_000
    assert len(page.ids) == len(set(page.ids))
    assert not {tag for tag, _ in page.tags} & FORBIDDEN
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("src") or "data:").startswith("data:")
        assert (attrs.get("href") or attrs.get("xlink:href") or "#").startswith(("#", "data:"))
        assert tag != "img" or attrs["alt"]
        assert tag != "svg" or (attrs["role"] == "img" and attrs["aria-label"])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return make_run(tmp_path / "full")


def test_the_page_of_a_complete_run_has_every_figure(full: Path) -> None:
    path = report.write(full)
    page = Page(path)
    assert path == full / "report.html"
    assert_self_contained(page)
    assert set(page.ids) >= FIGURES
    for words in (
        "97.2\u202f%",
        "96.9\u202f%",
        "1\u202fmin 36\u202fs",
        "123\u202f456",
        "Simulated data.",
        "in epoch 27",
    ):
        assert words in page.text
    for words in (
        "2.0",
        "Masked(Triangle(alpha=2), p=0.5)",
        "backspike train digits --seed 0",
        "Example CPU @ 2.1 GHz",
    ):
        assert words in page.text
    assert re.search(
        r"most frequent mistake is +8 +predicted as +1 *, 3 of 38 times \(7\.9", page.text
    )
    assert "352 of 358" not in page.text  # 352 samples, 6 of them mistakes
    assert "346 of 352" in page.text
    assert "drops a random 50.0\u202f% of them" in page.text
    assert "has not finished" not in page.text


def test_the_navigation_links_to_every_section(full: Path) -> None:
    page = Page(report.write(full))
    assert [tag for tag, _ in page.tags if tag == "h1"] == ["h1"]
    linked = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert linked == [f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"]
    assert len(linked) == 12


def test_the_wilson_interval_equals_published_values() -> None:
    """81 of 263 and 0 of 20, as in Newcombe 1998, table I, method 3."""
    assert np.allclose(results.wilson(81, 263), (0.2553, 0.3662), atol=5e-5)
    assert np.allclose(results.wilson(0, 20), (0.0, 0.1611), atol=5e-5)


def test_the_page_of_an_interrupted_run_says_so_and_shows_its_epochs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a b", epochs=7, finished=False)
    with open(run / "log.jsonl", "a") as log:
        log.write('{"event": "resumed", "epoch": 7}\n{"event": "epoch", "epoch": 7, "lo')
    page = Page(report.write(run))
    assert_self_contained(page)
    assert "has not finished" in page.text
    assert "resumed 1 time." in page.text
    assert f"backspike resume '{run}'" in page.text
    assert {"fig-accuracy", "fig-loss", "fig-firing-epochs"} <= set(page.ids)
    assert not {"fig-confusion", "fig-over-time", "fig-sample-0", "fig-membrane-0"} & set(page.ids)
    assert "7 of 30 planned" in re.sub(r"\s+", " ", page.text)


def test_a_run_that_stopped_before_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", epochs=0, finished=False)
    page = Page(report.write(run))
    assert "has not finished" in page.text
    assert "recipe" in page.ids
    assert "curves" not in page.ids


def test_potentials_are_shown_before_and_after_training(full: Path) -> None:
    def measured(mean: list[float]) -> dict[str, Any]:
        keys = ("std", "quantisation_error", "active_share", "share_below", "share_above")
        return {"conv2": {"mean": mean, **{key: [0.25, 0.75] for key in keys}}}

    log = full / "log.jsonl"
    initial = {
        "event": "initial",
        "membrane_counts": {"conv2": [5] * 80, "conv1": [1, 2]},
        "potential": measured([0.0, 0.5]),
    }
    last = json.loads(log.read_text().splitlines()[29]) | {"potential": measured([1.0, 2.0])}
    log.write_text(json.dumps(initial) + "\n" + log.read_text() + json.dumps(last) + "\n")
    page = report.write(full).read_text()
    assert "0.25 → 1.5" in page  # the mean of both timesteps
    assert "conv2, step 2" in page
    assert page.count("before training</li>") == 1
    log.write_text(
        log.read_text()
        .replace('"potential": {', '"potential": 3, "was": {')
        .replace("[5, 5", '["x", 5')
    )
    assert "0.25 → 1.5" not in report.write(full).read_text()


def test_optional_items_may_be_missing_from_the_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False, readout="Mean()")
    epochs = [
        {"event": "epoch", "epoch": e, "loss": None if e else float("nan"), "train_accuracy": 0.5}
        for e in range(3)
    ]
    (run / "log.jsonl").write_text(
        "\n".join(json.dumps(epoch | {"readout_weights": None}) for epoch in epochs)
    )
    (run / "env.json").unlink()
    page = Page(report.write(run))
    assert "fig-accuracy" in page.ids
    assert not {"readout", "widths", "fig-loss", "environment", "firing"} & set(page.ids)


def test_a_resumed_run_counts_each_epoch_once(full: Path) -> None:
    lines = (full / "log.jsonl").read_text().splitlines()
    log = [*lines[:10], lines[10][:40], '{"event": "resumed"}', *lines[8:]]
    (full / "log.jsonl").write_text("\n".join(log))
    run = read.load_run(full)
    assert list(run.x) == list(range(1, 31))
    assert run.done["test_accuracy"] == 0.9722
    (full / "log.jsonl").write_text("\n".join([*lines, '{"event": "resumed"}', lines[0]]))
    assert not read.load_run(full).done


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;$\\frac{ \ud800\x00"


def test_hostile_strings_are_escaped(full: Path) -> None:
    recipe, env = (
        json.loads((full / "recipe.json").read_text()),
        json.loads((full / "env.json").read_text()),
    )
    recipe = {
        "name": HOSTILE,
        "fields": recipe["fields"] | {HOSTILE: HOSTILE, "data": HOSTILE, "model": HOSTILE},
    }
    env |= {
        HOSTILE: HOSTILE,
        "command": HOSTILE,
        "data_note": "simulated " + HOSTILE,
        "device": HOSTILE,
    }
    (full / "recipe.json").write_text(json.dumps(recipe))
    (full / "env.json").write_text(json.dumps(env))
    log = (full / "log.jsonl").read_text().replace('"conv1"', json.dumps(HOSTILE))
    (full / "log.jsonl").write_text(log)
    arrays = dict(np.load(full / "evaluation.npz"))
    hostile = HOSTILE.rstrip("\ud800\x00")
    arrays |= {
        "classes": np.array([hostile + str(k) for k in range(10)]),
        "layer_names": np.array([hostile] * 3),
    }
    np.savez(full / "evaluation.npz", **arrays)
    page = Page(report.write(full))
    assert_self_contained(page)
    assert "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert page.text.count("<script>alert(1)</script>") > 20
    hostile_comparison = Page(report.compare([full, full], full / "compare.html"))
    assert_self_contained(hostile_comparison)


INJECTED = "{{ 12321 * 3 }}{% for x in 'ab' %}{{ x }}{% endfor %}{# #}{{ page.__class__ }}"


def test_strings_of_a_run_are_not_rendered_as_templates(full: Path) -> None:
    recipe = json.loads((full / "recipe.json").read_text())
    recipe |= {"name": INJECTED, "fields": recipe["fields"] | {"data": INJECTED, INJECTED: 1}}
    (full / "recipe.json").write_text(json.dumps(recipe))
    arrays = dict(np.load(full / "evaluation.npz"))
    arrays |= {"classes": np.array([INJECTED] * 10), "layer_names": np.array([INJECTED] * 3)}
    np.savez(full / "evaluation.npz", **arrays)
    page = Page(report.write(full))
    assert_self_contained(page)
    assert page.text.count(INJECTED) > 30
    assert "36963" not in page.text
    assert not re.search(r"class '|backspike\.report", page.text)


def test_a_constant_input_is_shown_once_and_events_as_frames(tmp_path: Path) -> None:
    def pictures(run: Path) -> int:
        tags = Page(report.write(run)).tags
        return sum((attrs.get("alt") or "").startswith("Input of sample 1") for _, attrs in tags)

    assert pictures(make_run(tmp_path / "still", events=False)) == 1
    assert pictures(make_run(tmp_path / "events")) == 8
    assert pictures(make_run(tmp_path / "long", T=100)) == 8


@pytest.mark.parametrize(
    ("steps", "most", "names"),
    [(0, 8, ""), (3, 8, "1 2 3"), (10, 8, "1–2 3–4 5–6 7–8 9–10"), (7, 2, "1–4 5–7")],
)
def test_timesteps_are_grouped(steps: int, most: int, names: str) -> None:
    assert " ".join(format.group_names(format.time_groups(steps, most))) == names


def test_the_most_frequent_mistake_is_named() -> None:
    once, twice = np.array([[5, 1], [0, 4]]), np.array([[5, 0], [2, 4]])
    assert results.worst(np.eye(2, dtype=int), "ab") == ["There are no mistakes."]
    assert results.worst(once, "ab") == ["No mistake occurs twice."]
    text = "".join(getattr(part, "text", part) for part in results.worst(twice, "ab"))
    assert "b predicted as a, 2 of 6 times (33.3" in text


def test_inputs_become_pixels() -> None:
    on_off = np.array([[[[4.0, 0.0]], [[0.0, 1.0]]]])  # [T=1, C=2, H=1, W=2]
    on, off = _pixels(on_off)[0, 0]
    assert on[0] > on[2]
    assert off[2] > off[0]
    assert (on[3], off[3]) == (255, 127)
    grey = _pixels(np.array([[[[-1.0, 0.0, 3.0]]]]))[0, 0]
    assert grey.tolist() == [[0, 0, 0, 255], [63, 63, 63, 255], [255, 255, 255, 255]]
    colour = _pixels(np.eye(3).reshape(1, 3, 1, 3))[0, 0]
    assert colour[:, :3].tolist() == (255 * np.eye(3)).tolist()


def test_a_page_with_many_classes_layers_and_timesteps_stays_small(tmp_path: Path) -> None:
    run, rng, L, K, T = make_run(tmp_path / "run", T=200), np.random.default_rng(0), 40, 1000, 200
    arrays = dict(np.load(run / "evaluation.npz")) | {
        "classes": np.array([f"a class called {k}" for k in range(K)]),
        "confusion": np.diag(np.full(K, 40)) + (rng.random((K, K)) < 0.01),
        "layer_names": np.array([f"layers.{i}.conv" for i in range(L)]),
        "firing_rate": rng.random((L, T)),
        "support_share": rng.random((L, T)),
        "membrane_counts": rng.integers(0, 999, (L, 80)),
        "surrogate_h": rng.random((L, 201)),
        "sample_x": rng.random((4, 1, 3, 224, 224), np.float32),
        "sample_logits": rng.normal(0, 1, (4, T, K)),
        "spikes_per_image": np.full(L, 1e6),
    }
    np.savez(
        run / "evaluation.npz",
        **arrays | {f"sample_spikes_{i}": rng.random((4, T, 64)) < 0.1 for i in range(L)},
    )
    page = Page(report.write(run))
    assert_self_contained(page)
    assert "fig-confusion" in page.ids
    assert "1–17" in page.text


def test_the_page_is_reproducible_and_leaves_no_other_file(full: Path) -> None:
    before = set(os.listdir(full))
    first = report.write(full).read_bytes()
    assert report.write(full).read_bytes() == first
    assert set(os.listdir(full)) == before | {"report.html"}


def test_a_failed_write_keeps_the_old_page_and_leaves_no_temporary_file(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = report.write(full).read_bytes()

    def fail(source: Path, target: Path) -> None:
        assert Path(source).read_bytes().endswith(b"</html>\n")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(
        errors.ReportError, match=r"no space left to write .*report\.html; free some"
    ):
        report.write(full)
    assert (full / "report.html").read_bytes() == old
    assert not list(full.glob(".*"))


def damage(run: Path, name: str, data: bytes | None) -> None:
    (run / name).unlink() if data is None else (run / name).write_bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("recipe.json", None, "recipe.json: missing; give a folder"),
        ("recipe.json", b'{"name": "di', "recipe.json: damaged"),
        ("recipe.json", b"[1]", "not a JSON object"),
        ("recipe.json", b"{}", 'has no "fields"'),
        ("recipe.json", b"\xff\xfe", "recipe.json: damaged"),
        ("env.json", b"[" * 100_000, "env.json: damaged"),
        ("log.jsonl", None, "log.jsonl: No such file"),
        ("log.jsonl", b"\x00\x01\n\x02\n", "log.jsonl: damaged"),
        (
            "evaluation.npz",
            b"PK\x03\x04 torn",
            "evaluation.npz: damaged .* write it again with `backspike eval`",
        ),
        ("evaluation.npz", b"", "evaluation.npz: damaged"),
    ],
)
def test_the_error_names_the_damaged_file_and_what_to_do(
    full: Path, name: str, data: bytes | None, message: str
) -> None:
    damage(full, name, data)
    with pytest.raises(errors.ReportError, match=message) as caught:
        report.write(full)
    assert "\n" not in str(caught.value)
    assert not (full / "report.html").exists()


def not_unicode(size: int) -> np.ndarray:
    return np.full(2 * size, 0xFF00_0041, np.uint32).view("<U2")


@pytest.mark.parametrize("size", [100, 3000, -40])
def test_a_truncated_evaluation_is_refused(full: Path, size: int) -> None:
    data = (full / "evaluation.npz").read_bytes()
    damage(full, "evaluation.npz", data[:size])
    with pytest.raises(errors.ReportError, match=r"evaluation\.npz: damaged"):
        report.write(full)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusion": np.ones((9, 9), int)}, "confusion has 9 along K"),
        ({"firing_rate": np.ones(3)}, r"firing_rate has shape \[3\], expected \[L T\]"),
        ({"membrane_edges": np.arange(80.0)}, "membrane_edges has 80 values for 80 bins"),
        ({"sample_spikes_1": np.ones((4, 3, 64))}, "sample_spikes_1 has 3 along T"),
        ({"classes": np.array([{}] * 10)}, r"classes\.npy: object"),
        ({"membrane_edges": np.zeros(81)}, "membrane_edges is not increasing"),
        ({"confusion": np.full((10, 10), "<script>")}, "confusion is of type <U8"),
        ({"confusion": np.full((10, 10), -1)}, "confusion has numbers that are no counts"),
        ({"accuracy_over_time": np.full(8, 1e300)}, r"accuracy_over_time has numbers above 1e\+30"),
        ({"sample_logits": np.ones((4, 8, 0))}, "sample_logits has 0 along K"),
        ({"classes": not_unicode(10)}, "classes has characters that are not Unicode"),
        ({"layer_names": not_unicode(3)}, "layer_names has characters that are not Unicode"),
    ],
)
def test_inconsistent_arrays_are_refused(
    full: Path, change: dict[str, np.ndarray], message: str
) -> None:
    np.savez(full / "evaluation.npz", **dict(np.load(full / "evaluation.npz")) | change)
    with pytest.raises(errors.ReportError, match=message):
        report.write(full)


def test_each_array_may_be_missing(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chart, "draw_svg", lambda *args, **options: "")
    arrays = dict(np.load(full / "evaluation.npz"))
    for name in arrays:
        np.savez(
            full / "evaluation.npz", **{key: value for key, value in arrays.items() if key != name}
        )
        assert_self_contained(Page(report.write(full)))


def test_a_run_that_diverged_has_a_page_without_nan(full: Path) -> None:
    log = [json.loads(line) for line in (full / "log.jsonl").read_text().splitlines()]
    keys = ("loss", "validation_loss", "test_accuracy")
    (full / "log.jsonl").write_text(
        "\n".join(json.dumps(e | {k: float("nan") for k in keys if k in e}) for e in log)
    )
    arrays = dict(np.load(full / "evaluation.npz"))
    nan = {
        k: np.full_like(a, np.nan)
        for k, a in arrays.items()
        if a.dtype.kind == "f" and k != "membrane_edges"
    }
    np.savez(full / "evaluation.npz", **arrays | nan)
    page = Page(report.write(full))
    assert_self_contained(page)
    assert not re.search(r"\bnan\b", page.source)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.ReportError, match="no such run folder; give the folder that"):
        report.write(tmp_path / "nowhere")
    with pytest.raises(errors.ReportError, match="no run folder to compare"):
        report.compare([], tmp_path / "out.html")


def test_a_comparison_shows_all_runs_and_their_differences(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "x" / "run", T=4, seed=0),
        make_run(tmp_path / "y" / "run", T=8, seed=1),
    ]
    runs.append(make_run(tmp_path / "z" / "run", T=8, finished=False, epochs=5, seed=2))
    out = report.compare(runs, tmp_path / "compare.html")
    page = Page(out)
    assert out == tmp_path / "compare.html"
    assert_self_contained(page)
    assert {
        "fig-validation-accuracy",
        "fig-train-accuracy",
        "fig-validation-loss",
        "fig-train-loss",
    } <= set(page.ids)
    for words in ("x/run", "z/run", "not finished", "seed", "Simulated data"):
        assert words in page.text
    assert "neuron.tau" not in page.text


def _no_validation(run: Path) -> None:
    """Removes what a run without a validation set does not log; its last epoch is the best."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        for key in ("validation_accuracy", "validation_loss"):
            line.pop(key, None)
    lines[-1] |= {"best_epoch": 29, "validation_accuracy": None}
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _set_own(run: Path, *own: str) -> None:
    recipe = json.loads((run / "recipe.json").read_text()) | {"own": list(own)}
    (run / "recipe.json").write_text(json.dumps(recipe))


def test_own_model_and_data_are_not_described_as_the_recipes(tmp_path: Path, full: Path) -> None:
    run = make_run(tmp_path / "own", events=False)
    _set_own(run, "model", "data")
    page = Page(report.write(run))
    assert "own model" in page.text
    assert "own data" in page.text
    for unused in ("ConvNet", "digits-dvs", "Triangle", "neuron.tau"):
        assert unused not in page.text
    assert "TWO(beta=0.7" in page.text  # the readout is the recipe's
    comparison = Page(report.compare([run, full], tmp_path / "compare.html")).text
    assert "own model" in comparison
    assert "ConvNet" in comparison


def test_unknown_kinds_of_own_parts_are_ignored(full: Path) -> None:
    _set_own(full, "optimizer")
    assert "ConvNet" in Page(report.write(full)).text
    recipe = json.loads((full / "recipe.json").read_text()) | {"own": 3}
    (full / "recipe.json").write_text(json.dumps(recipe))
    assert "ConvNet" in Page(report.write(full)).text


def test_without_a_validation_set_no_epoch_is_called_the_best(full: Path) -> None:
    _no_validation(full)
    page = Page(report.write(full))
    assert "weights of the last epoch" in page.text
    assert "Best validation" not in page.text
    assert "best validation epoch" not in page.text
    assert "Test, last epoch" not in page.text
    assert "97.2\u202f%" in page.text
    comparison = Page(report.compare([full], full / "compare.html")).text
    assert "97.2\u202f%" not in comparison
    assert "96.9\u202f%" in comparison  # in the column of the last epoch


def test_epochs_are_counted_from_1(full: Path) -> None:
    page = Page(report.write(full))
    assert "in epoch 27" in page.text  # 26 in the log
    assert "best validation epoch: 27" in page.text
    first_column = re.findall(r'<th scope="row">(\d+)</th>\s*<td>[\d.]+</td>', page.source)
    assert [n for n in first_column if int(n) > 9] == [str(n) for n in range(10, 31)]
    assert "0" not in first_column[:30]


def test_a_log_with_nothing_but_its_end_is_damaged(full: Path) -> None:
    lines = (full / "log.jsonl").read_text().splitlines()
    (full / "log.jsonl").write_text(lines[-1] + "\n")
    with pytest.raises(errors.ReportError, match=r"log\.jsonl: damaged .*no epoch.* train again"):
        report.write(full)


@pytest.mark.parametrize("key", ["problem", "illness"])
def test_problems_found_during_training_are_named(full: Path, key: str) -> None:
    finding = {key: "silent layer", "where": ["conv1"], "found": "no spike", "advice": "lower it"}
    vitals = {"layers": {"conv1": {"gradient": 0.5}}}
    watch = {"event": "watch", "epochs": 0, "vitals": vitals, "findings": [finding]}
    with open(full / "log.jsonl", "a") as log:
        log.write(json.dumps(watch) + "\n")
    text = Page(report.write(full)).text
    assert "silent layer" in text
    assert "lower it" in text


def test_the_time_may_be_missing_from_the_log(full: Path) -> None:
    log = re.sub(r', "seconds": [\d.]+', "", (full / "log.jsonl").read_text())
    (full / "log.jsonl").write_text(log)
    assert "1\u202fmin 36\u202fs" not in Page(report.write(full)).text
    assert "–" in Page(report.compare([full], full / "compare.html")).text


def test_long_labels_of_the_y_axis_are_not_cut_off() -> None:
    y = np.array([-200_000.0, -100_000.0])
    figure = chart.draw_chart("y", "Y", [chart.Line("y", np.arange(2.0), y, chart.ramp(0, 1))], "x")
    assert figure is not None
    grid_start = min(
        float(x) for x in re.findall(r'd="M ([\d.]+) [\d.]+ L 35', str(figure.picture))
    )
    assert grid_start > 46  # 45 for short labels


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
@pytest.mark.parametrize("name", ["recipe.json", "env.json", "log.jsonl", "evaluation.npz"])
def test_a_pipe_in_a_run_folder_is_refused(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(errors.ReportError, match=f"{name}: .*not a regular file"):
        report.write(run)


def test_importing_it_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, backspike.report\n"
        "sys.exit(bool({'torch', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- in a browser --------------------------------------------------------------------------------


class Chromium:
    """A headless browser, controlled through its pipe.

    It reads requests from descriptor 3 and writes answers and events to 4, each ended by a zero
    byte.
    """

    def __init__(self, binary: str, profile: Path) -> None:
        there, self.out = os.pipe()
        self.inn, back = os.pipe()
        launch = (
            "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4); "
            "os.execvp(a[3], a[3:])"
        )
        options = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
            *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
        )
        pipes = [str(there), str(back)]
        command = [sys.executable, "-c", launch, *pipes, binary, *options]
        command.append(f"--user-data-dir={profile}")
        with open(profile / "log", "wb") as log:
            self.process = subprocess.Popen(command, pass_fds=(there, back), stdout=log, stderr=log)
        os.close(there)
        os.close(back)
        self.buffer = b""
        self.count = 0
        self.events = list[dict[str, Any]]()
        self.session = ""
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            chunk = os.read(self.inn, 1 << 20)
            assert chunk, "the browser has ended"
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path, width: int, scheme: str) -> None:
        """Opens a page at this width and in this colour scheme."""
        self.events.clear()
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def value(self, script: str) -> Any:
        return self("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in methods]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(
            base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )

    def close(self) -> None:
        self("Browser.close")
        self.process.wait(20)
        os.close(self.out)
        os.close(self.inn)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chromium = Chromium(binary, Path(profile))
        yield chromium
        chromium.close()


# Elements wider than the page, except inside boxes that scroll
WIDER = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""
# Text outside its drawing
CUT = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(e => {
    const text = e.getBoundingClientRect();
    return text.left < box.left - 1 || text.right > box.right + 1;
  }).map(e => e.textContent);
})"""
# Tables that have to be scrolled
SCROLLED = """[...document.querySelectorAll('.scroll')]
  .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"""
# Sections whose drawings leave a part of the width empty
NARROW = """[...document.querySelectorAll('.grid')].filter(e =>
  [...e.querySelectorAll('figure svg')].length == 1 &&
  e.querySelector('figure').clientWidth < 0.9 * e.clientWidth).length"""
# Text too small to read
SMALL = """[...document.querySelectorAll('svg text')]
  .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)
  .filter(size => size < 10)"""
EMPTY = """[...document.images]
    .filter(e => !e.complete || !e.naturalWidth || !e.clientWidth).length +
  [...document.querySelectorAll('svg')]
    .filter(e => e.getBoundingClientRect().height < 40).length"""
# Text with too little contrast to its background (WCAG: 4.5)
CONTRAST = """(() => {
  const draw = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = (...colours) => {
    draw.clearRect(0, 0, 1, 1);
    for (const colour of colours) { draw.fillStyle = colour; draw.fillRect(0, 0, 1, 1); }
    const linear = c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = [...draw.getImageData(0, 0, 1, 1).data].map(linear);
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  const poor = [], written = 'h1,h2,h3,h4,p,dt,dd,small,a,code,th,td:not(.none),li,summary,' +
    '.right,.wrong,.on,.off,text';
  for (const e of document.querySelectorAll(written)) {
    const behind = [];
    for (let up = e; up; up = up.parentElement)
      behind.unshift(getComputedStyle(up).backgroundColor);
    const front = getComputedStyle(e)[e.tagName == 'text' ? 'fill' : 'color'];
    const [a, b] = [light(...behind), light(...behind, front)].sort((x, y) => x - y);
    if (b / a < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 30), front, b / a]);
  }
  return poor;
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("kind", ["events", "still", "interrupted", "long", "compare"])
def test_pages_are_legible_in_a_browser(
    browser: Chromium, tmp_path: Path, kind: str, width: int, scheme: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "still": {"events": False, "T": 4},
        "interrupted": {"finished": False, "epochs": 5},
        "long": {"T": 100, "model": "VGG" + "x" * 200},
    }
    run = make_run(tmp_path / "run", **changes.get(kind, {}))
    path = (
        report.compare([run, make_run(tmp_path / "other", T=4, seed=3)], tmp_path / "c.html")
        if kind == "compare"
        else report.write(run)
    )
    browser.open(path, width, scheme)
    browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert browser.value("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(WIDER) == []
    assert browser.value(EMPTY) == 0
    assert browser.value(SMALL) == []
    assert browser.value(CONTRAST) == []
    assert browser.value(CUT) == []
    assert browser.value(NARROW) == 0
    assert width < 1000 or browser.value(SCROLLED) == []
    assert not browser.seen("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    requests = {
        params["request"]["url"][:5] for params in browser.seen("Network.requestWillBeSent")
    }
    assert requests <= {"file:", "data:"}
    if folder := os.environ.get("BACKSPIKE_SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{kind}-{width}-{scheme}.png")
