"""The command line: help at once, errors in one line with the right exit code, output for people and for machines."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from backspike.cli import VERBS, main, verb_parser

QUICK = ["--limit=100", "--epochs=1", "--batch_size=50", "--model=ConvNet('6-P-8-P', size=8)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", "--out", str(folder), *QUICK]) == 0
    return folder


def said(capsys):
    out, err = capsys.readouterr()
    return out, err.strip()


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["train", "--help"], ["eval", "--help"], ["recipes"]]
)
def test_no_verb_that_only_talks_imports_torch(words):
    code = f"""
import sys
from backspike.cli import main
try:
    main({words})
except SystemExit:
    pass
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_comes_at_once():
    """0.3 s is the promise on a quiet machine; the best of several, and slack for a busy one."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "backspike", "--help"], check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    assert min(times) < 0.9


def test_the_package_adds_little_to_torch():
    code = "import torch, time; t = time.perf_counter(); import backspike; backspike.lif; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.9


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["bogus"], 2, "invalid choice: 'bogus'"),
        (["train", "digit"], 2, "did you mean digits"),
        (["train", "digits", "--epoch", "3"], 2, "did you mean epochs"),
        (["train", "--neuron.surrogate.q", "3"], 2, "no field of Masked"),
        (["train", "--epochs"], 2, "--epochs needs a value"),
        (["train", "--epochs", "--T", "3"], 2, "--epochs needs a value"),
        (["train", "--T", "3", "--T=4"], 2, "--T is given twice"),
        (["train", "--T", "0"], 2, "T must be at least 1"),
        (["train", "--neuron.tau", "1"], 2, "tau must be above 1"),
        (["train", "--neuron.surrogate.p", "-0.1"], 2, "must lie in [0, 1]"),
        (["train", "digits", "mnist"], 2, "unrecognized arguments: mnist; see: backspike train"),
        (["train", "--seeds", "3"], 2, "did you mean seed"),
        (["study", "ablation", "--watch", "1"], 2, "watch"),
        (["doctor", "digits", "--force", "1"], 2, "force"),
        (["train", "--out"], 2, "expected one argument"),
        (["eval"], 2, "RUN"),
        (["eval", "x", "--T", "3"], 2, "unrecognized arguments"),
        (["data", "mnits"], 1, "mnist"),
        (["eval", "no-such-run"], 1, "no run folder"),
        (["resume", "no-such-run"], 1, "no run folder"),
        (["report", "no-such-run"], 1, "no-such-run"),
    ],
)
def test_a_wrong_command_is_one_line_and_the_right_exit_code(
    capsys, monkeypatch, tmp_path, words, code, text
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    out, err = said(capsys)
    assert out == ""
    assert text in err
    assert err.startswith("backspike: ")
    assert "\n" not in err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_of_a_verb_is_never_a_field(verb):
    parser = verb_parser(verb)
    for option, action in parser._option_string_actions.items():
        words = [option] if action.nargs == 0 else [option, "--value"]
        assert parser.split_fields([*words, "--T", "3"]) == (words, {"T": "3"})
        if option.startswith("--"):
            words = [f"{option}=a value"]
            assert parser.split_fields([*words, "--T=3"]) == (words, {"T": "3"})


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("train", "resume")])
def test_torchrun_is_for_training(verb, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {"export": ["x", "--to", "nir"]} | dict.fromkeys(("doctor", "eval", "report"), ["x"])
    assert main([verb, *words.get(verb, [])]) == 2
    assert f"run backspike {verb} without it" in said(capsys)[1]


def test_missing_data_says_what_to_put_where(capsys, tmp_path):
    assert main(["train", "mnist", "--root", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "MNIST/raw/train-images-idx3-ubyte.gz" in said(capsys)[1]
    assert not (tmp_path / "run").exists()


def test_hyphens_and_spaces_in_fields(capsys, tmp_path):
    words = ["train", "--out", str(tmp_path / "run"), *QUICK, "--batch-size", "100"]
    assert main([w for w in words if w != "--batch_size=50"]) == 0
    assert json.loads((tmp_path / "run/recipe.json").read_text())["fields"]["batch_size"] == 100


def test_train_prints_plain_lines_where_there_is_no_terminal(run, capsys, tmp_path):
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *QUICK]) == 0
    out = said(capsys)[0].splitlines()
    assert out[0].startswith("digits: ConvNet")
    assert out[1].startswith("epoch   0  loss")
    assert "test accuracy" in out[-2]
    assert out[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_what_sgs_scales_is_said(capsys, tmp_path):
    words = [
        "train",
        "--out",
        str(tmp_path / "run"),
        "--scaling",
        "SGS()",
        *QUICK[:-1],
        "--model=ConvNet('4-4-P', size=8)",
    ]
    assert main(words) == 0
    line = said(capsys)[0].splitlines()[1]
    assert line.startswith(
        "gradients scaled: features.2.0 (with features.3); not scaled: features.0.0 (its input is not spikes)"
    )


def test_sgs_that_can_scale_nothing_is_refused(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "run"), "--scaling", "SGS()", *QUICK]) == 1
    assert "no layer of this model can be scaled" in said(capsys)[1]


def test_json_is_one_object_a_line_and_the_last_says_what_came_of_it(capsys, tmp_path):
    assert main(["train", "digits", "--json", "--out", str(tmp_path / "run"), *QUICK]) == 0
    events = [json.loads(line) for line in said(capsys)[0].splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "done"]
    assert events[-1].keys() >= {"run", "test_accuracy", "validation_accuracy", "epochs", "seconds"}


def test_a_terminal_gets_a_bar(tmp_path):
    parent, child = pty.openpty()
    words = [sys.executable, "-m", "backspike", "train", "--out", str(tmp_path / "run"), *QUICK]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=child, stderr=child, env=environment)
    os.close(child)
    screen = b""
    while True:
        try:
            screen += os.read(parent, 65536)
        except OSError:
            break
    os.close(parent)
    assert process.wait() == 0
    text = screen.decode()
    assert "epoch 1/1" in text
    assert "samples/s" in text
    assert "━" in text


def test_eval_report_and_resume_of_a_finished_run(run, capsys, tmp_path):
    capsys.readouterr()
    assert main(["eval", str(run)]) == 0
    assert "stopped after so many timesteps: 1:" in said(capsys)[0]
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(said(capsys)[0])["n"] == 360
    (run / "report.html").unlink()
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(said(capsys)[0])["report"] == str(run / "report.html")
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").exists()
    assert main(["resume", str(run)]) == 0


def test_damaged_weights_are_said(run, capsys, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/model.safetensors").write_bytes(b"\xff" * 100)
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert "model.safetensors is damaged" in said(capsys)[1]


def test_recipes_and_data_list_what_there_is(capsys):
    assert main(["recipes"]) == 0
    assert "CIFARNet" in said(capsys)[0]
    assert main(["recipes", "--json"]) == 0
    listed = [json.loads(line) for line in said(capsys)[0].splitlines()]
    assert {"digits", "digits-dvs", "mnist", "cifar10"} <= {r["name"] for r in listed}
    assert main(["data", "--json"]) == 0
    sets = {d["name"]: d for d in map(json.loads, said(capsys)[0].splitlines())}
    assert sets["digits"]["here"]
    assert sets["digits"]["samples"] == [1257, 180, 360]


def test_train_help_lists_every_field_with_its_value(capsys):
    assert main(["train", "mnist", "--help"]) == 0
    out = said(capsys)[0]
    assert "--neuron.surrogate Masked(base=Triangle(alpha=2.0" in out
    assert "--epochs 8" in out


def test_the_next_free_folder_is_taken(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        assert main(["train", *QUICK]) == 0
        assert (tmp_path / f"runs/digits-{n}/model.safetensors").exists()
