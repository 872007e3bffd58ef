"""Training: exact resuming after any stop, no losses, one-line errors."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers.training import (
    TINY,
    Own,
    Points,
    Stop,
    epochs,
    fit,
    own,
    same,
    stop_after,
    tiny,
    weights,
)
from safetensors.torch import load_file, save_file
from torch import nn

import backspike as bs
from backspike import train
from backspike.data.batches import Batches
from backspike.errors import RecipeError, RunError
from backspike.layers import sparsity, synapse
from backspike.recipes.values import TET
from backspike.run import Run
from backspike.train import checkpoint, learning_rate, setup, trainer


def test_a_run_leaves_the_documented_files(tmp_path):
    events = []
    result = bs.fit(tiny(), tmp_path / "run", listen=events.append)
    names = {p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")}
    assert names == {
        *("recipe.json", "env.json", "log.jsonl", "last.ckpt", "previous.ckpt", "best.ckpt"),
        *("model.safetensors", "evaluation.npz", "report.html"),
    }
    log = Run.open(tmp_path / "run").log()
    assert [e["event"] for e in log] == ["initial"] + ["epoch"] * 3 + ["done"]
    counts = log[0]["membrane_counts"]["features.1"]
    assert sum(counts) == 4 * 32 * 6 * 64  # T, B, C, pixels of the probed batch
    assert len(log[1]["potential"]["features.4"]["std"]) == 4
    log = log[1:]
    assert log[-1]["test_accuracy"] == result.test_accuracy
    assert {e["event"] for e in events} == {"start", "batch", "epoch", "done"}
    assert 0.4 < log[0]["masked_share"] < 0.6
    assert json.loads((tmp_path / "run/env.json").read_text())["parameters"] > 100
    assert np.load(tmp_path / "run/evaluation.npz")["confusion"].sum() == 360


def test_the_loaded_network_gives_the_accuracy_of_the_log(tmp_path):
    result = fit(tiny(limit=400, epochs=6, **{"optimizer.lr": 0.02}), tmp_path / "run")
    assert result.test_accuracy > 0.5
    network = bs.load(tmp_path / "run")
    split = bs.data.load("digits").test
    x = torch.from_numpy(split.x).float() / 255
    with torch.no_grad():
        accuracy = float(
            (network(x.expand(4, *x.shape)).argmax(1) == torch.from_numpy(split.y)).float().mean()
        )
    assert accuracy == pytest.approx(result.test_accuracy)
    evaluated = bs.evaluate(tmp_path / "run")
    assert evaluated["test_accuracy"] == result.test_accuracy
    assert evaluated["accuracy_over_time"][-1] == result.test_accuracy
    assert evaluated["n"] == 360


def test_runs_with_one_seed_are_identical_and_other_seeds_differ(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(tiny(seed=seed), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert epochs(tmp_path / "a") == epochs(tmp_path / "b")
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_variants_of_a_recipe_draw_the_same_random_numbers(tmp_path):
    """Masked or not, the generator ends in the same state: order, shifts and masks are paired."""
    states = []
    for name, surrogate in (("a", "Triangle()"), ("b", "Masked(Triangle(), p=0.9)")):
        fit(tiny(epochs=1, **{"neuron.surrogate": surrogate}), tmp_path / name)
        states.append(
            checkpoint.read(Run.open(tmp_path / name), "last.ckpt")["ranks"][0]["generators"][
                "torch"
            ]
        )
    assert torch.equal(*states)


def test_a_mask_of_zero_trains_as_no_mask(tmp_path):
    fit(tiny(**{"neuron.surrogate": "Triangle()"}), tmp_path / "a")
    fit(tiny(**{"neuron.surrogate": "Masked(Triangle(), p=0.0)"}), tmp_path / "b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("batches", [1, 4, 6, 12])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "accumulate": 2, "mask_p_end": 0.1, "clip": 1.0},
        {
            "optimizer": "SGD(lr=0.05, nesterov=True)",
            "precision": "bfloat16",
            "neuron.learn": "('tau', 'threshold')",
        },
        {
            "augment": "(Shift(1), OneOf(), CutMix(), Mixup())",
            "readout": "TWO(start_epoch=1)",
            "loss": "TET()",
        },
        {"class_weights": "balanced", "sampling": "balanced", "freeze": "features.0"},
        {"optimizer": "Muon(weight_decay=0.1)", "neuron.learn": "('tau',)"},
    ],
    ids=["plain", "ema+accumulate+anneal", "sgd+bf16+learn", "mixed", "balanced+freeze", "muon"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, changes, batches):
    recipe = tiny(checkpoint_seconds=0, **changes)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(batches))
    torch.manual_seed(999)  # what happens in between must not matter
    result = train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "parts")
    # resuming a finished run changes nothing
    assert train.resume(tmp_path / "parts", report=False) == result


class Dense(nn.Module):
    """Fully connected, [T, B, 1, 8, 8] -> [T, B, 10].

    The second layer is wide enough to be computed sparsely from spikes.
    """

    def __init__(self):
        super().__init__()
        self.first = bs.OverTime(nn.Flatten(), nn.Linear(64, 256))
        self.second = nn.Linear(256, 256)
        self.last = bs.OverTime(nn.Linear(256, 10))
        self.neurons = nn.ModuleList(bs.LIF(v_threshold=0.5) for _ in range(2))

    def forward(self, x):
        s = self.neurons[0](self.first(x))
        return self.last(self.neurons[1](synapse.linear(s, self.second)))


def test_a_resumed_run_keeps_its_sparsity_plan(tmp_path):
    """The sparsity plan depends on earlier firing rates, so it is part of the checkpoint."""
    sets = bs.data.load("digits", limit=320)
    recipe = tiny(
        checkpoint_seconds=0, epochs=3, batch_size=80, precision="float32", **{"optimizer.lr": 0.02}
    )
    arguments = {"train": sets.train, "test": sets.test, "validation": sets.validation}
    torch.manual_seed(0)
    fit(recipe, tmp_path / "whole", Dense(), **arguments)
    torch.manual_seed(0)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", Dense(), **arguments, listen=stop_after(6))
    stored = checkpoint.read(Run.open(tmp_path / "parts"), "last.ckpt")["ranks"][0]["products"]
    assert stored["model.second"]["forward"] != "dense"
    again = setup.set_up(recipe, Dense(), **arguments)
    trainer.Trainer(Run.open(tmp_path / "parts"), again).restore()
    assert sparsity.state(again.network) == stored
    train.resume(tmp_path / "parts", Dense(), **arguments, report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def command(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    return [sys.executable, "-m", "backspike", *map(str, words)], environment


FIELDS = [f"--{k}={v}" for k, v in {**TINY, "epochs": 40, "checkpoint_seconds": 0}.items()]


def wait_for_batches(run, n, process):
    """Until the log of the run shows n epochs, or the first checkpoint for n = 0."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "last.ckpt").exists() and len(Run(run).log()) > n:
            return
        time.sleep(0.005)
    process.kill()
    pytest.fail("the run did not get so far")


def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path):
    torch.set_num_threads(1)
    words, environment = command("train", "digits", "--out", tmp_path / "whole", *FIELDS)
    subprocess.run(words, env=environment, check=True, capture_output=True)
    words, environment = command("train", "digits", "--out", tmp_path / "run", *FIELDS)
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    wait_for_batches(tmp_path / "run", 0, process)
    random = np.random.default_rng()
    for _ in range(3):
        time.sleep(random.uniform(0, 0.3))
        before = (tmp_path / "run/last.ckpt").stat().st_mtime_ns
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        words, environment = command("resume", tmp_path / "run")
        process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        while (tmp_path / "run/last.ckpt").stat().st_mtime_ns == before:  # until it trains again
            assert process.poll() is None
            time.sleep(0.005)
    assert process.wait(timeout=600) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "run")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_continue(tmp_path, number):
    run = tmp_path / "run"
    words, environment = command("train", "--out", run, *FIELDS, "--epochs=500")
    words = [w for w in words if w != "--epochs=40"]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_batches(run, 1, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    assert (
        errors.strip()
        == f"backspike: stopped; a checkpoint was saved; to continue: backspike resume {run}"
    )
    assert checkpoint.read(Run.open(run), "last.ckpt")["position"][2] > 0


def test_three_quick_ctrl_c_end_in_one_line_with_an_intact_checkpoint(tmp_path):
    run = tmp_path / "run"
    words, environment = command("train", "--out", run, *FIELDS, "--epochs=500")
    words = [w for w in words if w != "--epochs=40"]
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_batches(run, 1, process)
    for pause in (0.0, 0.002, 0.002, 0.01, 0.05):
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    (line,) = errors.strip().splitlines()
    assert line.startswith("backspike: stopped; a checkpoint was saved; to continue: ")
    assert line.endswith(f"backspike resume {run}")
    assert checkpoint.read(Run.open(run), "last.ckpt")["position"][2] > 0


def test_a_run_is_only_overwritten_with_force(tmp_path):
    fit(tiny(epochs=1), tmp_path / "run")
    before = (tmp_path / "run/last.ckpt").read_bytes()
    with pytest.raises(RunError, match="replace it with force=True"):
        fit(tiny(epochs=1), tmp_path / "run")
    assert (tmp_path / "run/last.ckpt").read_bytes() == before
    fit(tiny(epochs=1, seed=3), tmp_path / "run", force=True)
    assert (tmp_path / "run/last.ckpt").read_bytes() != before


def test_a_start_that_fails_deletes_nothing(tmp_path):
    fit(tiny(epochs=1), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="does not take this data"):
        fit(tiny(model="VGGSNN()"), tmp_path / "run", force=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    with pytest.raises(RunError, match="does not take this data"):
        fit(tiny(model="VGGSNN()"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_recipe_whose_first_step_fails_leaves_the_folder_alone(tmp_path):
    """SGS scales no layer here, which only a forward and backward pass shows."""
    fit(tiny(epochs=1), tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    recipe = tiny(scaling="SGS(alpha=0.5)")
    with pytest.raises(RunError, match="the recipe cannot be trained: "):
        fit(recipe, tmp_path / "run", force=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    with pytest.raises(RunError, match="the recipe cannot be trained: ") as e:
        fit(recipe, tmp_path / "other")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "other").exists()


def test_a_recipe_can_be_given_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("backspike.recipes.get", lambda name: tiny(name=name, epochs=2))
    result = fit("digits", tmp_path / "run")
    assert Run(tmp_path / "run").recipe().name == "digits"
    log = epochs(tmp_path / "run")
    for name in ("loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr"):
        assert result.history[name].tolist() == [e[name] for e in log]
    assert result.history["seconds"].shape == (2,)
    table = result._repr_html_()
    assert table.count("<tr>") == 3
    assert "<th>train accuracy</th>" in table
    assert "&#x27;" in table  # the name of the folder is escaped
    accuracy = f"test accuracy {100 * result.test_accuracy:.2f} %"
    assert f"{accuracy}, epoch {result.best_epoch + 1} of 2 (best by validation), " in repr(result)


def test_an_unknown_recipe_name_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown recipe 'digit'; did you mean digits"):
        fit("digit", tmp_path / "run")


def test_errors_name_flags_on_the_command_line(tmp_path, monkeypatch):
    fit(tiny(epochs=1), tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/backspike", "train"])
    with pytest.raises(RunError, match=r"replace it with --force, or .* \(--out\)"):
        fit(tiny(epochs=1), tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    fit(tiny(), tmp_path / "whole")
    with pytest.raises(Stop):
        fit(tiny(), tmp_path / "run", listen=stop_after(1))
    (tmp_path / "run/last.ckpt").unlink()
    (tmp_path / "run/previous.ckpt").unlink(missing_ok=True)
    train.resume(tmp_path / "run", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "run")


def test_resuming_a_finished_run_returns_its_result_and_writes_a_missing_report(tmp_path):
    fit(tiny(epochs=1), tmp_path / "run")
    events = []
    train.resume(tmp_path / "run", listen=events.append)
    assert [e["event"] for e in events] == ["done"]
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"neuron.tau": "inf"},
        {"neuron.v_reset": 2.0},
        {"neuron.v_threshold": -1.0},
        {"neuron.reset_gradient": 2.0},
        {"neuron.learn": ("foo",)},
        {"neuron.backend": "quantum"},
        {"readout": "TWO(beta=2)"},
        {"loss": "CrossEntropy(label_smoothing=2)"},
        {"optimizer": "SGD(momentum=0, nesterov=True)"},
        {"optimizer": "Muon(momentum=1.0)"},
        {"optimizer": "Muon()", "schedule": "OneCycleLR()"},
        {"optimizer": "Muon(weight_decay=-0.1)"},
        {"optimizer": "Muon(sgd_scale=0.0)"},
        {"optimizer": "AdamW(weight_decay=-1)"},
        {"potential": "PDA(target='foo')"},
        {"potential": "PDA(layers=('nowhere',))"},
        {"scaling": "SGS(alpha=2)"},
        {"model": "ConvNet('32-X')"},
        {"model": "ConvNet('32-P-P-P-P', size=8)"},
    ],
    ids=str,
)
def test_values_that_cannot_be_built_are_refused_in_one_line(tmp_path, changes):
    with pytest.raises((RunError, RecipeError)) as e:
        fit(tiny(**changes), tmp_path / "run")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_missing_devices_are_refused(tmp_path):
    with pytest.raises(RunError, match="unknown device"):
        fit(tiny(), tmp_path / "run", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match="device='cpu'"):
            fit(tiny(), tmp_path / "run", device="cuda")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="other files"):
        fit(tiny(), tmp_path, force=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    with pytest.raises(RunError, match="is a file"):
        fit(tiny(), tmp_path / "thesis.tex")


def test_two_processes_cannot_use_one_folder(tmp_path):
    fit(tiny(epochs=1), tmp_path / "run")
    with Run.open(tmp_path / "run").locked(), pytest.raises(RunError, match="in use"):
        fit(tiny(epochs=1), tmp_path / "run", force=True)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    recipe = tiny(checkpoint_seconds=0)
    fit(recipe, tmp_path / "whole")

    def fill(event):
        if event["event"] == "batch" and event["epoch"] == 1:
            monkeypatch.setattr(os, "fsync", full_disk)

    with pytest.raises(RunError, match=r"no space left .* backspike resume"):
        fit(recipe, tmp_path / "run", listen=fill)
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert not list((tmp_path / "run").glob(".*.tmp"))
    train.resume(tmp_path / "run", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_damaged_checkpoint_is_reported(tmp_path):
    with pytest.raises(Stop):
        fit(tiny(checkpoint_seconds=0), tmp_path / "run", listen=stop_after(3))
    path = tmp_path / "run/last.ckpt"
    (tmp_path / "run/previous.ckpt").write_bytes(b"damaged as well")
    whole = path.read_bytes()
    for broken in (
        whole[: len(whole) // 2],
        b"",
        whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:],
    ):
        path.write_bytes(broken)
        with pytest.raises(RunError, match=r"last\.ckpt is damaged"):
            train.resume(tmp_path / "run", report=False)


def test_a_run_without_a_newer_field_resumes(tmp_path):
    with pytest.raises(Stop):
        fit(tiny(), tmp_path / "run", listen=stop_after(1))
    run = Run(tmp_path / "run")
    stored, state = run.read_json("recipe.json"), checkpoint.read(run, "last.ckpt")
    for fields in (stored["fields"], state["recipe"]["fields"]):
        del fields["cuda_graph"]
    run.write_json("recipe.json", stored)
    run.write("last.ckpt", checkpoint.to_bytes(state))
    assert train.resume(run.path, report=False).epochs == 3


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(Stop):
        fit(tiny(), tmp_path / "run", listen=stop_after(1))
    path = tmp_path / "run/recipe.json"
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(RunError, match="another recipe"):
        train.resume(tmp_path / "run", report=False)
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train.resume(tmp_path / "run", report=False)


def test_own_model_and_data(tmp_path):
    torch.manual_seed(0)
    result = fit(own(), tmp_path / "run", Own(), Points(), Points(32), validation=Points(32))
    assert result.test_accuracy == 1.0
    network = bs.load(tmp_path / "run", Own())
    assert network(torch.tensor([[[1.0, 1.0]]]).expand(4, 1, 2)).argmax().item() == 1
    with pytest.raises(RunError, match="trained with a model of your own; give model= again"):
        bs.load(tmp_path / "run")
    with pytest.raises(RunError, match="data of your own"):
        bs.evaluate(tmp_path / "run", Own())
    with pytest.raises(RunError, match=r"model= given does not fit .*net\.0\.0\.weight has shape"):
        bs.load(tmp_path / "run", Own(hidden=8))
    assert bs.evaluate(tmp_path / "run", Own(), Points(32))["test_accuracy"] == 1.0


@pytest.mark.parametrize("change", ["(Shift(1),)", "(Flip(),)", "(CutMix(),)", "(AutoAugment(),)"])
def test_an_augmentation_of_images_is_refused_for_other_data(tmp_path, change):
    """Before the folder is touched; Flip would otherwise reverse the features of each sample."""
    wrong = own().replace({"augment": change})
    with pytest.raises(RunError, match=r"needs images .* shape \[2\] .*: set augment=\(\)$"):
        fit(wrong, tmp_path / "run", Own(), Points(), Points(32))
    assert not (tmp_path / "run").exists()
    fit(wrong.replace({"augment": (), "epochs": 1}), tmp_path / "run", Own(), Points(), Points(32))


def test_values_of_own_data_are_not_rescaled(tmp_path):
    """Only static uint8 is divided by 255; attributes named x and y have no special meaning."""

    class Frames:
        x, y = np.full((4, 2, 1, 3, 3), 7), np.zeros(4)

        def __init__(self, sample):
            self.sample = sample

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return self.sample, 0

    cases = [
        (np.full((1, 8, 8), 51, np.uint8), 0.2),
        (np.full((1, 8, 8), 51), 51.0),
        (np.full((4, 2, 8, 8), 3, np.uint8), 3.0),
        (np.full((1, 8, 8), 0.5, np.float32), 0.5),
    ]
    for sample, value in cases:
        x, _ = Batches(Frames(sample), own(), torch.device("cpu")).take(torch.tensor([0, 1]))
        assert x.shape == (4, 2, *sample.shape[-3:])
        assert x.unique().tolist() == pytest.approx([value])


def test_a_run_with_own_model_and_data_is_described_as_such(tmp_path):
    """Neither the start event nor env.json names the recipe's model, neuron or data set."""
    events = []
    result = fit(own(), tmp_path / "run", Own(), Points(), Points(32), listen=events.append)
    start = next(e for e in events if e["event"] == "start")
    fields = start["recipe"]["fields"]
    assert (fields["model"], fields["data"]) == ("own model", "own data")
    unused = ("neuron", "norm", "root", "limit", "size", "upright", "speaker", "by")
    assert not [name for name in fields if name.split(".")[0] in unused]
    assert fields["epochs"] == 4
    env = json.loads((tmp_path / "run/env.json").read_text())
    assert env["data_note"] == "own data"
    assert "ConvNet" not in env["command"]
    assert "Neuron" not in env["command"]
    assert env["command"].endswith("), out, model=..., train=..., test=...)")
    assert "epoch 4 of 4 (the last)" in repr(result)
    assert np.isnan(result.history["validation_accuracy"]).all()


def repacked(path, change):
    """Rewrites a safetensors file with a changed header."""
    packed = path.read_bytes()
    size = int.from_bytes(packed[:8], "little")
    header = change(packed[8 : 8 + size])
    path.write_bytes(len(header).to_bytes(8, "little") + header + packed[8 + size :])


def test_weights_of_another_type_or_with_a_name_twice_are_refused(tmp_path):
    fit(tiny(epochs=1), tmp_path / "run")
    path = tmp_path / "run/model.safetensors"
    whole = path.read_bytes()
    wide = {k: v.double() if v.is_floating_point() else v for k, v in load_file(path).items()}
    save_file(wide, path)
    with pytest.raises(RunError, match=r"is float64, in the network float32") as e:
        bs.load(tmp_path / "run")
    assert "\n" not in str(e.value)
    path.write_bytes(whole)

    def twice(header):
        name, entry = next((k, v) for k, v in json.loads(header).items() if k != "__metadata__")
        again = f'"{name}":{json.dumps(entry)},'.encode()
        return b"{" + again + header.lstrip()[1:]

    repacked(path, twice)
    with pytest.raises(RunError, match=r"safetensors is damaged .*") as e:
        bs.load(tmp_path / "run")
    assert "\n" not in str(e.value)


def test_own_model_resumes(tmp_path):
    torch.manual_seed(1)
    a, b = Own(), Own()
    b.load_state_dict(a.state_dict())
    fit(own(), tmp_path / "whole", a, Points(), Points(32))
    with pytest.raises(Stop):
        fit(
            own(checkpoint_seconds=0.0),
            tmp_path / "run",
            b,
            Points(),
            Points(32),
            listen=stop_after(6),
        )
    for given in ({}, {"model": Own()}, {"train": Points()}):
        with pytest.raises(RunError, match="of your own"):
            train.resume(tmp_path / "run", **given)
    match = r"network or is damaged: model\.net\.0\.0\.weight has shape .*resume it with the model="
    with pytest.raises(RunError, match=match):
        train.resume(tmp_path / "run", Own(hidden=8), Points(), Points(32))
    train.resume(tmp_path / "run", Own(), Points(), Points(32))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_without_validation_the_last_epoch_is_tested(tmp_path):
    result = fit(own(), tmp_path / "run", Own(), Points(), Points(32))
    assert (result.validation_accuracy, result.best_epoch) == (None, 3)


class Returns(torch.nn.Module):
    """What a function makes of the outputs of another model."""

    def __init__(self, change):
        super().__init__()
        self.model = Own()
        self.change = change

    def forward(self, x):
        return self.change(self.model(x))


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (Own(), Points(poison=1), "NaN or infinity"),
        (Own(), Points(n=0), "empty"),
        (Own(K=1), Points(), "labels outside"),
        (
            Own(K=2),
            bs.data.Split(np.zeros((9, 2), np.float32), np.arange(9) % 3, np.arange(9)),
            "labels outside",
        ),
        (torch.nn.Linear(3, 2), Points(), "does not take this data"),
        (torch.nn.Flatten(), Points(), "outputs over time"),
        (Returns(lambda o: (o, None)), Points(), "must return one tensor.* it returned a tuple"),
        (Returns(lambda o: {"o": o}), Points(), "it returned a dict"),
        (Returns(lambda o: None), Points(), "it returned None"),
        (Own, Points(), "model must be a torch.nn.Module, got a class; create the model first"),
        ("vgg16", Points(), "model must be a torch.nn.Module, got str"),
        (Own(), iter([]), r"expected a data set with len\(d\) and d\[i\] -> \(x, y\), got"),
        (Own(), torch.zeros(9, 2), r"expected pairs \(x, y\) .*, got Tensor for each sample"),
        (Own(), [(torch.zeros(2), 0, 1)] * 9, "got 3 values for each sample"),
        (Own(), [{"x": torch.zeros(2), "y": 0}] * 9, "got dict for each sample"),
        (Own(), [({"x": torch.zeros(2)}, 0)] * 9, "samples of type dict: expected one tensor"),
        (Own(), [([0.0, 0.0], 0)] * 9, "samples of type list: expected one tensor or array"),
        (
            torch.nn.Sequential(torch.nn.Flatten(), Own()),
            Points(),
            r"into bs\.OverTime\(\.\.\.\): 0 \(Flatten\)$",
        ),
        (
            torch.nn.Sequential(bs.OverTime(torch.nn.BatchNorm1d(2)), torch.nn.Conv2d(1, 1, 1)),
            Points(),
            r"into bs\.OverTime\(\.\.\.\): 1 \(Conv2d\)$",
        ),
        (Own(), [(torch.zeros(7, 2), 0)] * 9, "is time, set the recipe's has_time=True$"),
        (Own(), [(torch.zeros(7, 2, 1, 1), 0)] * 9, "or set has_time=False if the samples are"),
    ],
)
def test_bad_data_and_models_are_refused_in_one_line(tmp_path, model, data, words):
    with pytest.raises(RunError, match=words) as e:
        fit(own(), tmp_path / "run", model, data, Points(8))
    assert "\n" not in str(e.value)


def test_something_other_than_a_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"recipe must be a bs\.Recipe.* got Own"):
        fit(Own(), tmp_path / "run")


def test_an_exploding_loss_stops_the_run_and_leaves_the_checkpoint_intact(tmp_path):
    with pytest.raises(RunError, match=r"the loss became (nan|inf).*optimizer\.lr"):
        fit(own().replace({"optimizer": "SGD(lr=1e38)"}), tmp_path / "run", Own(), Points())
    state = checkpoint.read(Run.open(tmp_path / "run"), "last.ckpt")
    assert all(torch.isfinite(v).all() for v in state["network"].values())


def test_exploding_weights_behind_a_silent_layer_are_reported(tmp_path):
    """A membrane potential of NaN emits no spikes: the loss stays finite, the gradient does not."""
    with pytest.raises(RunError, match=r"became .*optimizer\.lr"):
        fit(tiny(**{"optimizer": "SGD(lr=1e30)"}), tmp_path / "run")
    state = checkpoint.read(Run.open(tmp_path / "run"), "last.ckpt")
    assert all(torch.isfinite(v).all() for v in state["network"].values())


def test_an_error_within_a_step_names_epoch_and_batch(tmp_path):
    class Single(Own):
        def forward(self, x):
            if self.training and x.shape[1] == 1:
                raise ValueError("Expected more than 1 value per channel")
            return super().forward(x)

    with pytest.raises(RunError, match="epoch 1, batch 5: Expected more than 1"):
        fit(own(), tmp_path / "run", Single(), Points(65), Points(8))


def test_bf16_evaluation_matches_the_test_accuracy(tmp_path):
    result = fit(tiny(limit=400, precision="bfloat16", **{"optimizer.lr": 0.02}), tmp_path / "run")
    confusion = np.load(tmp_path / "run/evaluation.npz")["confusion"]
    assert np.trace(confusion) / confusion.sum() == pytest.approx(result.test_accuracy)


def test_patience_needs_a_validation_set(tmp_path):
    with pytest.raises(RunError, match="validation="):
        fit(own(patience=2), tmp_path / "run", Own(), Points(), Points(8))


def test_patience_ends_early(tmp_path):
    recipe = tiny(epochs=30, patience=2, **{"optimizer.lr": 1e-9})
    assert fit(recipe, tmp_path / "run").epochs < 30


def test_annealing_moves_the_probability(tmp_path):
    fit(tiny(mask_p_end=0.1), tmp_path / "run")
    assert [e["mask_p"] for e in epochs(tmp_path / "run")] == pytest.approx([0.5, 0.3, 0.1])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Without BatchNorm and mask, two halves give the weights of the whole, to rounding."""
    ends = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        fit(own(accumulate=accumulate), tmp_path / str(accumulate), Own(), Points(), Points(8))
        ends.append(weights(tmp_path / str(accumulate)))
    for k in ends[0]:
        torch.testing.assert_close(ends[0][k], ends[1][k], rtol=1e-3, atol=1e-4)


def test_other_losses_and_readouts_train(tmp_path):
    for name, changes in (
        ("tet", {"loss": TET(), "readout": "Mean()"}),
        ("last", {"readout": "Last()"}),
    ):
        assert fit(tiny(**changes), tmp_path / name).epochs == 3


def test_the_learning_rate_warms_up_and_falls_to_zero():
    recipe = tiny(epochs=4, warmup_epochs=1, **{"optimizer.lr": 0.005})
    rates = [learning_rate.learning_rate(recipe, step, per_epoch=4) for step in range(16)]
    assert rates[:5] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.005])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[15] == pytest.approx(0.0025 * (1 + np.cos(np.pi * 11 / 12)))


EVERYTHING = {
    "neuron.surrogate": "Masked(Parametric(Triangle()), p=0.3)",
    "neuron.learn": "('tau', 'threshold')",
    "potential": "PDA(strength=0.1, warmup=6)",
    "scaling": "SGS(pool_pre=True)",
    "weight_mask": 0.2,
    "freeze_width": 2,
    "ema": 0.5,
    "model": "ConvNet('6-8-P-8', size=8)",
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"precision": "bfloat16"}],
    ids=["float32", "accumulate", "bf16"],
)
def test_all_methods_together_train_and_resume_exactly(tmp_path, changes):
    recipe = tiny(checkpoint_seconds=0, **EVERYTHING, **changes)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", listen=stop_after(6))
    train.resume(tmp_path / "run", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    first, second, third = epochs(tmp_path / "run")
    assert second["widths"] != first["widths"]
    assert third["widths"] == second["widths"]  # frozen after two epochs


@pytest.mark.parametrize("field", ["potential", "scaling", "weight_mask"])
def test_each_method_changes_what_is_learned(tmp_path, field):
    plain = tiny(epochs=1, model="ConvNet('6-8-P', size=8)")
    value = {"potential": "PDA(strength=1.0)", "scaling": "SGS()", "weight_mask": 0.5}[field]
    fit(plain, tmp_path / "off")
    fit(plain.replace({field: value}), tmp_path / "on")
    assert not same(weights(tmp_path / "off"), weights(tmp_path / "on"))
