"""Failures of real runs: a one-line message with advice, no losses, and exact resuming."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import few_digits
from helpers.paths import ROOT
from helpers.recipes import put
from helpers.training import Own, Points, Stop, epochs, fit, own, same, stop_after, tiny, weights

import backspike as bs
from backspike import data, train
from backspike.cli import main
from backspike.data import DataError, cache, packed
from backspike.data.sets.digits import DIGITS
from backspike.errors import RunError
from backspike.recipes import NAMES
from backspike.run import FILES, Run
from backspike.system import heap
from backspike.train import checkpoint, setup, step, trainer

KILLS = ROOT / "benchmarks" / "kill_campaign.py"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path / "data"))


def interrupted(recipe, run, batches=6, **options):
    """Stops a run like a kill after that many batches; its last checkpoint is one batch older."""
    with pytest.raises(Stop):
        fit(recipe, run, listen=stop_after(batches), **options)


def assert_equal_runs(a, b):
    assert same(weights(a), weights(b))
    assert epochs(a) == epochs(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert Run(b).done()


EXACT = {"checkpoint_seconds": 0}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of `tiny`, with a checkpoint after every batch."""
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(tiny(**EXACT), run)
    return run


# ---- every recipe resumes ------------------------------------------------------------------------


def timed(name):
    quick = ("digits-dvs", "nmnist-tsbp")
    return name if name in quick else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [timed(name) for name in NAMES])
def test_a_recipe_resumes_within_an_epoch_bit_for_bit(name, tmp_path, monkeypatch):
    """With averaged weights, an annealed mask, a step in parts, and a worker that reads samples."""
    few_digits(monkeypatch)
    recipe = bs.recipes.get(name)
    put(recipe.data, tmp_path / "data")
    surrogate = recipe.neuron.surrogate
    masked = surrogate if isinstance(surrogate, bs.Masked) else bs.Masked(surrogate, p=0.5)
    changes = {
        "neuron.surrogate": masked,
        "mask_p_end": 0.1,
        "ema": 0.9,
        "accumulate": 2,
        "workers": 1,
    }
    recipe = recipe.replace({"batch_size": 2, "limit": 4, "epochs": 2, **changes, **EXACT})
    load = setup.load_data

    def four(split):
        return split.take(np.arange(min(4, len(split))))

    def loaded(recipe):
        """Validated and tested on few samples as well."""
        sets = load(recipe)
        return replace(sets, validation=four(sets.validation), test=four(sets.test))

    monkeypatch.setattr(setup, "load_data", loaded)
    fit(recipe, tmp_path / "whole")
    interrupted(recipe, tmp_path / "parts", batches=4)
    stored = checkpoint.read(Run(tmp_path / "parts"), "last.ckpt")
    assert stored["position"][:2] == [1, 1]
    torch.manual_seed(999)
    train.resume(tmp_path / "parts", report=False)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    ends = [checkpoint.read(Run(tmp_path / run), "last.ckpt") for run in ("whole", "parts")]
    assert same(ends[0]["averaged"], ends[1]["averaged"])


# ---- kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_after_kills_at_random_moments_all_results_are_the_same(tmp_path):
    """A longer version of `test_killed_and_resumed_it_ends_with_the_same_weights`."""
    words = [sys.executable, str(KILLS), "--kills", "36", "--out", str(tmp_path / "kills.json")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted = json.loads((tmp_path / "kills.json").read_text())["parts"].values()
    assert sum(part["kills"] for part in counted) >= 36
    for part in counted:
        assert part["equal"] == part["ends"] > 0
        assert part["torn"] == part["losses"] == []


@pytest.mark.parametrize("n", range(len(FILES)))
def test_a_kill_while_a_run_is_replaced_leaves_a_run_that_resumes(n, tmp_path, monkeypatch):
    """After any deletion, what is left is a run that is complete or can be trained again."""
    fit(tiny(epochs=1), tmp_path / "run")
    old = Run(tmp_path / "run").done()
    unlink, deleted = Path.unlink, []

    def killed(path, **options):
        if path.name in FILES:
            if len(deleted) == n:
                raise Stop
            deleted.append(path.name)
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    monkeypatch.setattr(trainer.Trainer, "_begin", lambda self: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        fit(tiny(epochs=1, seed=5), tmp_path / "run", force=True)
    monkeypatch.undo()
    again = train.resume(tmp_path / "run", report=False)
    if n < len(FILES) - 1:
        assert again.test_accuracy == old["test_accuracy"]
    assert Run(tmp_path / "run").done()


def test_a_run_killed_before_it_wrote_its_recipe_starts_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".recipe.json.99999999.tmp"):
        (run / name).write_bytes(b"{")
    fit(tiny(epochs=1), run)
    assert not list(run.glob(".*.tmp"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".bashrc").touch()
    with pytest.raises(RunError, match="holds other files"):
        fit(tiny(epochs=1), tmp_path / "other")


# ---- the disk ------------------------------------------------------------------------------------


@contextmanager
def mounted(folder, *options):
    """Something mounted on the folder, where this process may do that."""
    folder.mkdir(exist_ok=True)
    try:
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True)
    except OSError:
        done = None
    if done is None or done.returncode:
        pytest.skip("needs to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        yield folder


def fill(disk, but):
    """Fills the disk but for so many bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(max(free - but, 0)))
    return filler


@pytest.mark.parametrize("left", [0, 4096, 12288])
def test_a_disk_that_fills_up_loses_nothing(left, small_disk, whole):
    """Sooner or later a line of the log, the best weights or a checkpoint has no room."""
    run, fillers = small_disk / "run", []

    def listen(event):
        if event["event"] == "batch" and event["epoch"] == 1 and not fillers:
            fillers.append(fill(small_disk, left))

    with pytest.raises(
        RunError, match=r"^no space left to write .*; free some space and .*backspike resume "
    ) as e:
        fit(tiny(**EXACT), run, listen=listen)
    assert "\n" not in str(e.value)
    assert not list(run.glob(".*.tmp"))
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        checkpoint.read(Run(run), name)
    fillers[0].unlink()
    train.resume(run, report=False)
    assert_equal_runs(whole, run)


def test_a_cache_on_a_full_disk_moves_to_a_temporary_folder(
    small_disk, tmp_path, monkeypatch, caplog
):
    """A memory-mapped file on a full disk raises SIGBUS unless its space is reserved first."""
    monkeypatch.setenv("BACKSPIKE_CACHE", str(small_disk))
    temporary = tmp_path / "temporary"
    monkeypatch.setattr(cache, "_temporary", lambda: temporary)
    put("nmnist", tmp_path / "data")
    fill(small_disk, 65536)
    sets = data.load("nmnist", T=50)  # 30 recordings of 50 x 2 x 34 x 34 bytes
    assert sets.train.x.sum() + sets.validation.x.sum() + sets.test.x.sum() == 30 * 50
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
    assert "No space left" in caplog.messages[0]
    assert "is in the temporary folder" in caplog.messages[0]
    temporary = small_disk
    with pytest.raises(
        DataError,
        match=r"^nmnist-frames\S+ fits neither into the cache .* \(No space left on device\) "
        r"nor into "
        r".* \(No space left on device\); free some space, or set BACKSPIKE_CACHE to a folder "
        r"that can be written$",
    ):
        data.load("nmnist", T=51)


def test_widening_reserves_its_space_too(small_disk):
    rows = [(0, np.zeros((1, 100_000), np.uint8)), (1, np.full((1, 100_000), 2**40, np.uint64))]
    with pytest.raises(OSError, match="No space left"):
        packed.write(small_disk / "x.npy", (2, 100_000), rows)


def test_a_read_only_folder_is_reported_in_one_line(tmp_path, capsys, whole):
    run = tmp_path / "run"
    interrupted(tiny(**EXACT), run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with mounted(run, "--bind", str(run)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        for words in (["resume"], ["train", "--force", "--out"], ["report"]):
            assert main([*words, str(run)]) == 1
            said = capsys.readouterr().err
            assert said.count("\n") == 1
            assert f"cannot write {run}" in said
            assert "make the folder writable or choose another" in said
        with pytest.raises(RunError, match=r"cannot write .*evaluation"):
            Run(run).write("evaluation.npz", b"")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    train.resume(run, report=False)
    assert_equal_runs(whole, run)


# ---- two processes -------------------------------------------------------------------------------

HOLDS = """
import fcntl, sys, time
f = open(sys.argv[1], 'w')
fcntl.flock(f, fcntl.LOCK_EX)
print(flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_is_left_alone_until_its_process_is_gone(tmp_path, capsys, whole):
    pytest.importorskip("fcntl", exc_type=ImportError)  # of the other process
    run = tmp_path / "run"
    interrupted(tiny(**EXACT), run)
    before = (run / "last.ckpt").read_bytes()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run / ".lock")], stdout=subprocess.PIPE
    )
    other.stdout.readline()
    for words in (["resume", str(run)], ["train", "--force", "--out", str(run)]):
        assert main(words) == 1
        assert f"{run} is in use by another process; wait for it" in capsys.readouterr().err
    assert (run / "last.ckpt").read_bytes() == before
    other.kill()
    other.communicate()
    train.resume(run, report=False)
    assert_equal_runs(whole, run)


def test_a_run_made_by_another_process_meanwhile_is_not_replaced(tmp_path):
    recipe = tiny(epochs=1)
    run = Run.free(tmp_path / "run")
    fit(recipe, tmp_path / "run")  # by the other process, between our look and our lock
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="already holds a run"), run.created(recipe):
        pass
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


# ---- the clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_clock_that_jumps_changes_nothing(step, tmp_path, monkeypatch, whole):
    """Every reading of the wall clock jumps by eleven days, and files have impossible dates."""
    now = [2e9]

    def jumps():
        now[0] += step
        return now[0]

    monkeypatch.setattr(time, "time", jumps)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumps() * 1e9))
    started = time.monotonic()
    interrupted(tiny(**EXACT), tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        os.utime(path, (3e9, 3e9) if step < 0 else (0, 0))
    result = train.resume(tmp_path / "run", report=False)
    assert 0 < result.seconds < time.monotonic() - started
    assert all(
        0 < e["seconds"] <= result.seconds
        for e in Run(tmp_path / "run").log()
        if e["event"] == "epoch"
    )
    assert_equal_runs(whole, tmp_path / "run")


# ---- damage --------------------------------------------------------------------------------------

DAMAGES = {
    "flipped": lambda whole: whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:],
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "gone": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(damage, tmp_path, caplog, whole):
    run = tmp_path / "run"
    interrupted(tiny(**EXACT), run)
    last, before = (run / "last.ckpt").read_bytes(), (run / "previous.ckpt").read_bytes()
    if DAMAGES[damage] is None:
        (run / "last.ckpt").unlink()
    else:
        (run / "last.ckpt").write_bytes(DAMAGES[damage](last))
    with pytest.raises(Stop):  # stopped again before the next checkpoint, both are whole
        train.resume(run, report=False, listen=stop_after(1))
    assert caplog.messages == [
        f"{run / 'last.ckpt'} is damaged: "
        "continuing from the checkpoint before it, epoch 2, batch 1"
    ]
    assert (run / "last.ckpt").read_bytes() == (run / "previous.ckpt").read_bytes() == before
    train.resume(run, report=False)
    assert_equal_runs(whole, run)


def test_no_damaged_checkpoint_is_accepted_with_other_contents(tmp_path):
    """With a random byte changed or the end cut off, it is refused or reads as before."""
    interrupted(tiny(**EXACT), tmp_path / "run", batches=2)
    content = (tmp_path / "run/last.ckpt").read_bytes()
    wanted, random, refused = (
        checkpoint.read(Run(tmp_path / "run"), "last.ckpt"),
        np.random.default_rng(0),
        0,
    )
    for i in range(150):
        at = int(random.integers(len(content)))
        bad = bytearray(content)
        bad[at] ^= int(random.integers(1, 256))
        (tmp_path / "run/last.ckpt").write_bytes(bad if i % 3 else content[:at])
        try:
            found = checkpoint.read(Run(tmp_path / "run"), "last.ckpt")
        except RunError as e:
            refused += "\n" not in str(e)
            continue
        assert same(found["network"], wanted["network"])
        for key in ("position", "sums", "best", "log", "recipe", "elapsed"):
            assert found[key] == wanted[key]
    assert refused > 100  # in one line; the bytes between the parts of the file are unused


def test_damaged_best_weights_are_reported_before_training(tmp_path):
    interrupted(tiny(**EXACT), tmp_path / "run")
    (tmp_path / "run/best.ckpt").write_bytes(b"PK")
    seen = []
    with pytest.raises(RunError, match=r"best\.ckpt is damaged .*force=True"):
        train.resume(tmp_path / "run", report=False, listen=seen.append)
    assert seen == []


def test_without_hard_links_a_checkpoint_is_copied(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    interrupted(tiny(**EXACT), tmp_path / "run", batches=3)
    positions = [
        checkpoint.read(Run(tmp_path / "run"), name)["position"][1]
        for name in ("previous.ckpt", "last.ckpt")
    ]
    assert positions == [1, 2]


LOGS = {
    "cut": lambda log: log[: len(log) // 2],
    "garbled": lambda log: log[:40] + b"\xff\x00}{" + log[44:],
    "a line of something else": lambda log: log + b"17\n[]\n",
    "empty": lambda log: b"",
    "gone": None,
}


@pytest.mark.parametrize("finished", [False, True], ids=["interrupted", "finished"])
@pytest.mark.parametrize("damage", LOGS)
def test_a_damaged_log_is_restored_from_the_checkpoint(damage, finished, tmp_path, whole):
    run = tmp_path / "run"
    if finished:
        subprocess.run(["cp", "-r", str(whole), str(run)], check=True)
    else:
        interrupted(tiny(**EXACT), run)
    log = run / "log.jsonl"
    log.unlink() if LOGS[damage] is None else log.write_bytes(LOGS[damage](log.read_bytes()))
    train.resume(run, report=False)
    assert_equal_runs(whole, run)
    assert [e["event"] for e in Run(run).log()] == [e["event"] for e in Run(whole).log()]
    assert len(log.read_bytes().splitlines()) == len(Run(run).log())


def test_a_report_mentions_damaged_lines_of_the_log(tmp_path, whole, caplog):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(whole), str(run)], check=True)
    (run / "log.jsonl").write_bytes(LOGS["garbled"]((run / "log.jsonl").read_bytes()))
    with caplog.at_level(logging.WARNING, "backspike"):
        assert main(["report", str(run)]) == 0
    assert f"1 damaged lines left out; to repair the file: backspike resume {run}" in caplog.text


# ---- NaN -----------------------------------------------------------------------------------------


def blobs(n=64, poison=None, value=np.nan):
    """Two Gaussian blobs in the plane as arrays; `poison`: the sample that holds `value`."""
    x, y = (np.stack(v) for v in zip(*(Points(n)[i] for i in range(n))))
    if poison is not None:
        x[poison, 1] = value
    return data.Split(x, y.astype(np.int64), np.arange(n))


@pytest.mark.parametrize("where", ["train", "validation", "test"])
@pytest.mark.parametrize("kind", ["arrays", "samples", "workers"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_in_data_names_the_sample(where, kind, value, tmp_path):
    sets = {
        name: blobs(64, 21 if name == where else None, value)
        for name in ("train", "validation", "test")
    }
    if kind != "arrays":
        sets = {name: [split[i] for i in range(64)] for name, split in sets.items()}
    with pytest.raises(
        RunError,
        match=r"batch \d of the data holds NaN or infinity \(sample 21\); clean the data set",
    ):
        fit(own(workers=int(kind == "workers")), tmp_path / "run", Own(), **sets)
    state = checkpoint.read(Run(tmp_path / "run"), "last.ckpt")
    assert state["position"][2] == {"train": 0, "validation": 0, "test": 16}[where]


def spoil(at, do):
    """A listener that does something to the run after the given (epoch, batch)."""

    def listen(event):
        if event["event"] == "batch" and (event["epoch"], event["batch"]) == at:
            do()

    return listen


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_nan_in_a_weight_names_it(value, word, tmp_path):
    model = Own()
    weight = model.net[2][0].weight

    def break_it():
        weight.data[0, 3] = value

    message = (
        r"^the loss became nan in epoch 2, batch 3: "
        rf"net\.2\.0\.weight contained {word} in 1 of 32 values before the step;"
    )
    with pytest.raises(RunError, match=message) as e:
        fit(own(), tmp_path / "run", model, Points(), Points(8), listen=spoil((1, 2), break_it))
    assert "optimizer.lr (0.02) or with clip=1 (the last checkpoint is intact)" in str(e.value)
    assert checkpoint.read(Run(tmp_path / "run"), "last.ckpt")["position"] == [1, 0, 4]


def test_nan_in_a_gradient_names_the_weight(tmp_path):
    model, steps = Own(), []

    def hook(g):
        steps.append(1)
        return g * np.nan if len(steps) == 6 else g

    model.net[0][0].bias.register_hook(hook)
    message = (
        r"^the gradient became nan in epoch 2, batch 2: all outputs are finite, "
        r"but the gradient of net\.0\.0\.bias contains NaN in 16 of 16 values; train again"
    )
    with pytest.raises(RunError, match=message):
        fit(own(), tmp_path / "run", model, Points(), Points(8))


class Divides(Own):
    """Its middle layer gives infinity for large inputs."""

    def __init__(self, factor):
        super().__init__()
        self.net.insert(2, bs.OverTime(Scale(factor)))


class Scale(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor if self.training else x


def test_nan_from_a_layer_names_the_layer(tmp_path):
    message = (
        r"^the loss became nan in epoch 1, batch 1: the output of net\.2\.0 \(Scale\) "
        r"is not finite, although its weights and inputs are;"
    )
    with pytest.raises(RunError, match=message):
        fit(own(), tmp_path / "run", Divides(float("inf")), Points(), Points(8))


def test_nan_weights_from_the_last_step_of_an_epoch_do_not_replace_the_best(tmp_path):
    model = Own()

    def break_it():
        model.net[2][0].weight.data[0, 3] = np.nan

    best = {}

    def listen(event):
        if event["event"] == "epoch":
            best["bytes"] = (tmp_path / "run/best.ckpt").read_bytes()
        spoil((1, 4), break_it)(event)

    with pytest.raises(
        RunError,
        match=r"^model\.net\.2\.0\.weight became NaN or infinite before epoch 2, batch 5; ",
    ):
        fit(own(), tmp_path / "run", model, Points(), Points(8), listen=listen)
    assert (tmp_path / "run/best.ckpt").read_bytes() == best["bytes"]
    assert [e["epoch"] for e in epochs(tmp_path / "run")] == [0]


# ---- memory, and processes that die --------------------------------------------------------------


class Hungry(Own):
    """Allocates half a gigabyte in training, or in evaluation, once `full` is set."""

    def __init__(self, training):
        super().__init__()
        self.when, self.full = training, False

    def forward(self, x):
        if self.full and self.training == self.when:
            x = x + torch.ones(1 << 27)[0] - 1
        return super().forward(x)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/status"), reason="reads how much memory this process has"
)
@pytest.mark.parametrize("when", [True, False], ids=["training", "validation"])
def test_running_out_of_memory_gives_advice(when, tmp_path, monkeypatch):
    monkeypatch.setattr(heap, "_mode", "")
    heap.release_heap()  # memory reserved by another test would be available otherwise
    recipe, model = own(accumulate=2, **EXACT), Hungry(when)
    torch.manual_seed(3)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmData")) * 1024
    before = resource.getrlimit(resource.RLIMIT_DATA)

    def no_more():
        model.full = True
        resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 28), before[1]))

    try:
        with pytest.raises(RunError) as e:
            fit(
                recipe,
                tmp_path / "run",
                model,
                Points(),
                Points(8),
                validation=Points(8),
                listen=spoil((0, 2), no_more),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert str(e.value) == (
        "out of memory with batch_size=16 and 2 parts per step; train again with accumulate=4 "
        'or a smaller batch_size, or find settings that fit with bs.plan_memory(recipe, "4GB")'
    )
    sets = {"train": Points(), "test": Points(8), "validation": Points(8)}
    train.resume(tmp_path / "run", Own(), **sets, report=False)
    calm = Own()
    calm.load_state_dict(start)
    fit(recipe, tmp_path / "whole", calm, **sets)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_data_set_larger_than_memory_gives_advice(tmp_path, monkeypatch):
    monkeypatch.setitem(vars(DIGITS), "read", lambda source, place: np.empty(1 << 50))
    with pytest.raises(RunError, match=r"^out of memory .*bs\.plan_memory"):
        fit(tiny(), tmp_path / "run")


class Deadly(Points):
    """Its reading process is killed at sample 40 as long as the file is there."""

    def __init__(self, n, file):
        super().__init__(n)
        self.file = file

    def __getitem__(self, i):
        if i == 40 and self.file.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.parametrize("where", ["train", pytest.param("validation", marks=pytest.mark.slow)])
def test_a_killed_worker_gives_one_line_and_the_run_resumes(where, tmp_path):
    recipe, file = own(workers=2, **EXACT), tmp_path / "deadly"
    sets = {"train": Points(64), "validation": Points(64), "test": Points(8)}
    sets[where] = Deadly(64, file)
    torch.manual_seed(3)
    model, again, third = Own(), Own(), Own()
    for other in (again, third):
        other.load_state_dict(model.state_dict())
    fit(recipe, tmp_path / "whole", model, **sets)
    message = (
        r"^a process that reads samples ended "
        r"\(killed, perhaps because memory ran out\); lower .*workers"
    )
    with pytest.raises(RunError, match=message):
        fit(recipe, tmp_path / "run", again, **sets, listen=spoil((0, 2), file.touch))
    file.unlink()
    train.resume(tmp_path / "run", third, **sets, report=False)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_worker_may_be_killed_while_the_network_computes(tmp_path, monkeypatch):
    """torch raises the error at any point of the run, here within a step."""
    file = tmp_path / "deadly"
    take = step.Step.__call__

    def dies(self, x, y, parts):
        take(self, x, y, parts)
        if self.number == 3:
            import multiprocessing

            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
            time.sleep(2)

    monkeypatch.setattr(step.Step, "__call__", dies)
    with pytest.raises(RunError, match=r"^a process that reads samples ended .*lower .*workers"):
        fit(own(workers=2, **EXACT), tmp_path / "run", Own(), Deadly(640, file), Points(8))
    assert checkpoint.read(Run(tmp_path / "run"), "last.ckpt")["position"] == [0, 2, 2]
