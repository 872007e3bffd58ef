"""The command line: fast help, errors in one line, exit codes, output for people and programs."""

import json
import os
import pty
import shutil
import subprocess
import sys
import time

import pytest

from backspike import recipes
from backspike import run as run_module
from backspike.cli import VERBS, main, verb_parser
from backspike.system.files import cannot_write
from backspike.train import progress

QUICK = ["--limit=100", "--epochs=1", "--batch_size=50", "--model=ConvNet('6-P-8-P', size=8)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits", "--out", str(folder), *QUICK]) == 0
    return folder


def output(capsys):
    out, err = capsys.readouterr()
    return out, err.strip()


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["train", "--help"], ["eval", "--help"], ["recipes"]]
)
def test_verbs_that_only_print_do_not_import_torch(words):
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


def test_help_is_fast():
    """0.3 s is the goal on a quiet machine; the best of five may take 0.9 s on a busy one."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "backspike", "--help"], check=True, capture_output=True
        )
        times.append(time.perf_counter() - started)
    assert min(times) < 0.9


def test_the_package_adds_little_to_the_import_time_of_torch():
    code = (
        "import torch, time; t = time.perf_counter(); import backspike; backspike.lif; "
        "print(time.perf_counter() - t)"
    )
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
        (["train", "digits", "--epoch", "3"], 2, "did you mean --epochs or"),
        (
            ["train", "--lr", "1"],
            2,
            "--lr is not a field of the recipe; did you mean --optimizer.lr?",
        ),
        (["train", "--learning-rate", "1"], 2, "did you mean --optimizer.lr?"),
        (["train", "--timesteps", "1"], 2, "did you mean --T?"),
        (["train", "--neuron", "plif"], 2, "unknown name plif; did you mean PLIF"),
        (["train", "--has-time", "yes"], 2, "must be True or False or None, got 'yes'"),
        (["train", "--p", "1"], 2, "did you mean --neuron.surrogate.p?"),
        (["train", "--alpha", "1"], 2, "did you mean --neuron.surrogate.base.alpha?"),
        (["train", "--v_treshold", "1"], 2, "did you mean --neuron.v_threshold?"),
        (["train", "--weight-decay", "1"], 2, "did you mean --optimizer.weight_decay?"),
        (["doctor", "digits", "--lr", "1"], 2, "did you mean --optimizer.lr?"),
        (["study", "ablation", "--lr", "1"], 2, "did you mean --optimizer.lr?"),
        (["train", "--xyzzy", "1"], 2, "see: backspike train --help"),
        (
            ["train", "--neuron.surrogate.q", "3"],
            2,
            "neuron.surrogate has: --neuron.surrogate.base, --neuron.surrogate.p",
        ),
        (["train", "--epochs"], 2, "--epochs needs a value"),
        (["doctor", "--watch"], 2, "(options without a value: backspike doctor --help)"),
        (["train", "--epochs", "--T", "3"], 2, "--epochs needs a value"),
        (["train", "--T", "3", "--T=4"], 2, "--T is given twice"),
        (["train", "--T", "0"], 2, "T must be at least 1"),
        (["train", "--neuron.tau", "1"], 2, "tau must be above 1"),
        (["train", "--neuron.surrogate.p", "-0.1"], 2, "must lie in [0, 1]"),
        (["train", "digits", "mnist"], 2, "unrecognized arguments: mnist; see: backspike train"),
        (["train", "--seeds", "3"], 2, "did you mean --seed?"),
        (["train", "nothing.json"], 2, "there is no file nothing.json"),
        (["train", "--device", "gpu"], 2, "--device: must be cpu, cuda or cuda:1, got 'gpu'"),
        (["eval", "x", "--device", "gpu"], 2, "must be cpu, cuda or cuda:1"),
        (["study", "ablation", "--seeds", "0"], 2, "--seeds: must be at least 1, got 0"),
        (["study", "tsbp-toy", "--seeds", "0"], 2, "--seeds: must be at least 1, got 0"),
        (["study", "ablation", "--jobs", "0"], 2, "--jobs: must be at least 1, got 0"),
        (["bench", "nosuch"], 2, "unknown workload 'nosuch'"),
        (["bench", "--rounds", "0"], 2, "--rounds: must be at least 1"),
        (["bench", "--device", "gpu"], 2, "use --device cpu"),
        (["data", "nosuch"], 2, "no data set 'nosuch'"),
        (["study", "ablation", "--watch", "1"], 2, "watch"),
        (["doctor", "digits", "--force", "1"], 2, "force"),
        (["train", "--out"], 2, "expected one argument"),
        (["eval"], 2, "RUN"),
        (["eval", "x", "--T", "3"], 2, "unrecognized arguments"),
        (["data", "mnits"], 2, "mnist"),
        (["eval", "no-such-run"], 1, "neither a run folder nor a network"),
        (["resume", "no-such-run"], 1, "no run folder"),
        (["report", "no-such-run"], 1, "no-such-run"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(
    capsys, monkeypatch, tmp_path, words, code, text
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    out, err = output(capsys)
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
def test_torchrun_is_only_for_training(verb, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = {"export": "x --to nir", "predict": "x y", "course": "x", "stream": "x --events y"}
    words |= dict.fromkeys(("card", "doctor", "eval", "report"), "x")
    assert main([verb, *words.get(verb, "").split()]) == 2
    assert f"run backspike {verb} without it" in output(capsys)[1]


def test_missing_data_tells_which_files_to_put_where(capsys, tmp_path):
    assert main(["train", "mnist", "--root", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "MNIST/raw/train-images-idx3-ubyte.gz" in output(capsys)[1]
    assert not (tmp_path / "run").exists()


def test_field_names_may_have_hyphens(capsys, tmp_path):
    words = ["train", "--out", str(tmp_path / "run"), *QUICK, "--batch-size", "100"]
    assert main([w for w in words if w != "--batch_size=50"]) == 0
    assert json.loads((tmp_path / "run/recipe.json").read_text())["fields"]["batch_size"] == 100


def test_train_prints_plain_lines_without_a_terminal(run, capsys, tmp_path):
    assert main(["train", "digits", "--out", str(tmp_path / "run"), *QUICK]) == 0
    out = output(capsys)[0].splitlines()
    assert out[0].startswith("digits: ConvNet")
    assert out[1].startswith("epoch   1  loss")
    assert "(best epoch 1 of 1), trained for" in out[-2]
    assert out[-2].startswith("test accuracy")
    assert out[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run/report.html").stat().st_size > 10_000


def test_train_prints_what_sgs_scales(capsys, tmp_path):
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
    line = output(capsys)[0].splitlines()[1]
    assert line.startswith(
        "gradients scaled: features.2.0 (with features.3); "
        "not scaled: features.0.0 (its input is not spikes)"
    )


def test_sgs_without_a_layer_to_scale_is_an_error(capsys, tmp_path):
    assert main(["train", "--out", str(tmp_path / "run"), "--scaling", "SGS()", *QUICK]) == 1
    assert "no layer of this model can be scaled" in output(capsys)[1]


def test_json_output_is_one_object_per_line_and_ends_with_the_result(capsys, tmp_path):
    assert main(["train", "digits", "--json", "--out", str(tmp_path / "run"), *QUICK]) == 0
    events = [json.loads(line) for line in output(capsys)[0].splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "done"]
    assert events[-1].keys() >= {"run", "test_accuracy", "validation_accuracy", "epochs", "seconds"}


def test_a_terminal_shows_a_bar(tmp_path):
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


def test_eval_report_and_resume_work_on_a_finished_run(run, capsys, tmp_path):
    capsys.readouterr()
    assert main(["eval", str(run)]) == 0
    assert "accuracy after 1 timestep: " in (out := output(capsys)[0])
    assert " %, after 2: " in out
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(output(capsys)[0])["n"] == 360
    (run / "report.html").unlink()
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(output(capsys)[0])["report"] == str(run / "report.html")
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").exists()
    assert main(["resume", str(run)]) == 0


def test_damaged_weights_are_an_error(run, capsys, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/model.safetensors").write_bytes(b"\xff" * 100)
    assert main(["eval", str(tmp_path / "run")]) == 1
    assert "model.safetensors is damaged" in output(capsys)[1]


def test_recipes_and_data_are_listed(capsys):
    assert main(["recipes"]) == 0
    assert "CIFARNet" in output(capsys)[0]
    assert main(["recipes", "--json"]) == 0
    listed = [json.loads(line) for line in output(capsys)[0].splitlines()]
    assert {"digits", "digits-dvs", "mnist", "cifar10"} <= {r["name"] for r in listed}
    assert main(["data", "--json"]) == 0
    sets = {d["name"]: d for d in map(json.loads, output(capsys)[0].splitlines())}
    assert sets["digits"]["here"]
    assert sets["digits"]["samples"] == [1257, 180, 360]


def test_data_counts_what_is_present(capsys, tmp_path):
    for n in range(3):
        (tmp_path / "NMNIST/Train/0").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"NMNIST/Train/0/{n:05d}.bin").write_bytes(b"")
    (tmp_path / "NMNIST/Test/0").mkdir(parents=True)
    (tmp_path / "NMNIST/Test/0/00001.bin").write_bytes(b"")
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").write_bytes(b"")

    def first_line(name):
        assert main(["data", name, "--root", str(tmp_path)]) == 0
        return output(capsys)[0].splitlines()[0].split(maxsplit=1)[1]

    recordings = "55,000 training, 5,000 validation and 10,000 test recordings; 10 classes"
    assert first_line("nmnist") == f"4 of 70,000 recordings ({recordings})"
    assert first_line("mnist").startswith("damaged (55,000 training")
    assert first_line("shd").startswith("missing (7,341 training")
    assert first_line("digits-dvs").startswith(
        "complete (1,257 training, 180 validation and 360 test recordings"
    )


def test_train_help_lists_every_field_with_its_value(capsys):
    assert main(["train", "mnist", "--help"]) == 0
    out = output(capsys)[0]
    assert "--neuron.surrogate Masked(base=Triangle(alpha=2.0" in out
    assert "--epochs 8" in out


def test_runs_get_the_next_free_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2):
        assert main(["train", *QUICK]) == 0
        assert (tmp_path / f"runs/digits-{n}/model.safetensors").exists()


def test_resumed_runs_print_the_epoch_counted_from_1():
    fields = {"model": "M()", "data": "d", "T": 4, "precision": "float32", "channels_last": False}
    event = {
        "event": "start",
        "recipe": {"name": "r", "fields": fields},
        "chosen": {},
        "ranks": 1,
        "run": "runs/r-1",
        "epochs": 5,
        "epoch": 2,
    }
    assert "5 epochs, from epoch 3, precision float32, into runs/r-1" in progress._text(event)
    assert ", 1 epoch, precision" in progress._text({**event, "epochs": 1, "epoch": 0})


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([], "health OK; 45-49 % of neurons receive a gradient; relative weight update 0.03-0.1"),
        ([{"illness": "silent layer", "where": ["a"], "note": False}], "health: silent layer (a);"),
        ([{"problem": "one label", "where": [], "note": False}], "health: one label;"),
        ([{"problem": "one label", "where": [], "note": True}], "health OK;"),
    ],
)
def test_watch_prints_one_line(findings, text):
    layers = {"a": {"support_share": [0.4, 0.5]}, "b": {"support_share": [0.49]}}
    weights = {"w": {"update_ratio": 0.1}, "v": {"update_ratio": 0.03}, "b": {"update_ratio": None}}
    event = {"event": "watch", "vitals": {"layers": layers, "weights": weights}}
    assert progress._text({**event, "findings": findings}).strip().startswith(text)


def test_the_report_of_one_run_is_written_where_out_says(run, capsys, tmp_path):
    page = tmp_path / "page.html"
    (run / "report.html").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["report", str(run), "--out", str(page)]) == 0
    assert output(capsys)[0].strip() == f"report: {page}"
    assert page.stat().st_size > 10_000
    assert not (run / "report.html").exists()


def test_a_result_that_cannot_be_stored_is_printed(run, capsys, caplog, monkeypatch):
    def refuse(path, data):
        raise cannot_write(path, PermissionError(13, "Permission denied"))

    monkeypatch.setattr(run_module, "write_atomic", refuse)
    capsys.readouterr()
    assert main(["eval", str(run), "--anytime"]) == 0
    assert "test accuracy" in (out := output(capsys)[0])
    assert "early exit once" in out
    assert [m.split(" cannot")[0] for m in caplog.messages] == [
        "backspike: the result was not stored:"
    ] * 2
    assert f"cannot write {run / 'evaluation.npz'}: Permission denied" in caplog.text


def test_a_recipe_is_read_from_a_file(run, capsys, tmp_path):
    file = tmp_path / "mine.json"
    recipe = recipes.digits().replace({"name": "mine", "epochs": 1, "limit": 100})
    file.write_text(json.dumps(recipe.to_dict()))
    words = ["--batch_size=50", "--model=ConvNet('6-P-8-P', size=8)"]
    assert main(["train", str(file), "--out", str(tmp_path / "run"), *words]) == 0
    trained = json.loads((tmp_path / "run/recipe.json").read_text())
    assert (trained["name"], trained["fields"]["batch_size"]) == ("mine", 50)
    # the recipe of a run gives the same run again
    assert main(["train", str(run / "recipe.json"), "--out", str(tmp_path / "again")]) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run, tmp_path / "again")]
    assert weights[0] == weights[1]
    assert main(["doctor", str(file), *words]) in (0, 1)
    assert "mine (not trained)" in output(capsys)[0]
    assert main(["train", str(file), "--help"]) == 0
    assert "--epochs 1\n" in output(capsys)[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda stored: {**stored, "name": 3}, "the name of a recipe must be text, got 3"),
        (lambda stored: {**stored, "name": None}, "the name of a recipe must be text, got None"),
        (lambda stored: {**stored, "own": ["model"]}, "a run with your own model or data"),
        (lambda stored: {**stored, "fields": {"lr": 1}}, "JSON file: lr: "),
        (lambda stored: [stored], "is not a recipe's JSON file"),
        (lambda stored: {**stored, "name": "../up"}, "'../up' is not a folder name; use --out"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_a_bad_recipe_file_is_one_line(verb, change, text, capsys, monkeypatch, tmp_path):
    if verb == "doctor" and "--out" in text:
        return  # the doctor makes no folder
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(change(recipes.digits().to_dict())))
    assert main([verb, str(file)]) == 2
    out, err = output(capsys)
    assert out == ""
    assert text in err
    assert "\n" not in err


def test_a_huge_recipe_file_is_refused(capsys, tmp_path):
    (tmp_path / "huge.json").write_bytes(b" " * (1 << 21))
    assert main(["train", str(tmp_path / "huge.json")]) == 2
    assert "more than 1048576 bytes" in output(capsys)[1]
