"""Several ranks against a single process: batches, statistics, losses, weights, and lost ranks."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from torch import nn

import backspike as bs
from backspike import train
from backspike.data.batches import Batches
from backspike.errors import RanksError, RunError
from backspike.kernel.mask import draw_seed
from backspike.layers import norm
from backspike.run import Run
from backspike.system import distributed
from backspike.system.distributed import Ranks
from backspike.train import checkpoint, setup

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

# ---- the shares ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_share_every_part_of_every_batch(size, accumulate):
    """Each sample of a batch goes to one rank, in the same part as with one process."""
    data = bs.data.Split(
        np.arange(50, dtype=np.float32)[:, None], np.zeros(50, np.int64), np.arange(50)
    )
    recipe = bs.Recipe(batch_size=16, accumulate=accumulate, limit=50)
    batches = Batches(data, recipe, CPU)
    together = [list(batches.training(3, 1, Ranks(r, size))) for r in range(size)]
    for number, batch in enumerate(batches.order(3).split(16)[1:], 1):
        parts = batch.chunk(accumulate)
        assert batches.parts(number) == [len(p) for p in parts]
        split = [
            x[0, :, 0].split([Ranks(r, size).share(len(p)) for p in parts])
            for r, (x, _) in enumerate(their[number - 1] for their in together)
        ]
        for k, part in enumerate(parts):
            assert torch.cat([their[k] for their in split]).tolist() == part.tolist()
            assert {len(their[k]) for their in split} <= {len(part) // size, -(-len(part) // size)}


def test_evaluation_sees_each_sample_once_with_any_number_of_ranks():
    data = bs.data.Split(
        np.arange(21, dtype=np.float32)[:, None], np.zeros(21, np.int64), np.arange(21)
    )
    batches = Batches(
        data, bs.Recipe(batch_size=5), CPU
    )  # the last batch is one sample: some ranks have none of it
    seen = [x[0, :, 0].tolist() for r in range(3) for x, _ in batches.in_order(ranks=Ranks(r, 3))]
    assert sorted(chain.from_iterable(seen)) == list(range(21))


def test_a_rank_without_samples_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(distributed, "current", lambda: Ranks(0, 8))
    for name in ("broadcast", "gather"):
        monkeypatch.setattr(Ranks, name, lambda *_: None)
    monkeypatch.setattr(Ranks, "on_rank0", lambda self, f: f())
    monkeypatch.setattr(Ranks, "rank0_first", lambda self: nullcontext())
    recipe = bs.recipes.digits().replace({"limit": 100, "batch_size": 32})  # 100 = 3 * 32 + 4
    with pytest.raises(
        RunError,
        match=r"batch 4 .* parts of 4 samples, too few for 8 ranks; change batch_size \(32\)",
    ):
        setup.set_up(recipe, device="cpu")


# ---- what two ranks compute, one spawn -----------------------------------------------------------


def samples(*shape, seed):
    """Values on a grid of 1/64, whose sums are exact in float64."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 129, shape, generator=g).double() / 64


def norms():
    torch.manual_seed(0)
    layers = {
        "BatchNorm2d": nn.BatchNorm2d(3),
        "BatchNorm2d of all batches": nn.BatchNorm2d(3, momentum=None),
        "without affine": nn.BatchNorm2d(3, affine=False),
        "TDBN": bs.TDBN(3, branches=2, v_threshold=0.5),
        "TEBN": bs.TEBN(3, 4),
        "MPBN": bs.MPBN(channels=3),
    }
    for layer in layers.values():
        for p in layer.parameters():
            nn.init.uniform_(p, 0.5, 1.5)
    return {name: layer.double() for name, layer in layers.items()}


def normalised(layer, rank=None):
    """Two passes of training over X, or a rank's share of it, and what they leave."""
    x, g = (a if rank is None else a[:, SHARES[rank]] for a in (X, G))
    x = x.clone().requires_grad_()
    over_time = layer if isinstance(layer, bs.MPBN) else bs.OverTime(layer)
    for _ in range(2):
        y = over_time(x)
        y.backward(g)
    return (
        {"y": y.detach(), "x": x.grad},
        {n: p.grad for n, p in layer.named_parameters()},
        dict(layer.named_buffers()),
    )


def test_synchronised_norms_of_one_process_equal_its_own():
    """`sync_batch_norm` replaces torch's norms; names, values and the layers of SGS stay."""
    model = bs.models.sew_resnet18(in_channels=1, stem="cifar")
    twin = copy.deepcopy(model)
    norm.sync_batch_norm(twin)
    assert not any(type(m) is nn.BatchNorm2d for m in twin.modules())
    assert sum(isinstance(m, norm.SyncNorm) for m in twin.modules()) == sum(
        isinstance(m, nn.BatchNorm2d) for m in model.modules()
    )
    assert "its statistics are shared between ranks" in bs.explain(twin)
    assert "its statistics are shared between ranks" not in bs.explain(model)
    x = torch.rand(2, 1, 8, 8).expand(2, 2, 1, 8, 8)
    scaling = [bs.scale_gradients(m, pool_pre=True) for m in (model, twin)]
    for m in (model, twin):
        torch.manual_seed(0)
        m(x).sum().backward()
    assert str(scaling[0]) == str(scaling[1])
    for (name, a), (same_name, b) in zip(model.state_dict().items(), twin.state_dict().items()):
        assert name == same_name
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    twin.eval()
    assert bs.explain(twin) == bs.explain(model.eval()).replace("BatchNorm2d", "SyncNorm")


def test_a_users_own_norm_is_refused():
    class Mine(nn.BatchNorm2d):
        pass

    with pytest.raises(
        ValueError,
        match=r"^0 is a Mine, whose statistics cannot be shared between ranks; "
        r"set sync_norm=False$",
    ):
        norm.sync_batch_norm(nn.Sequential(Mine(3)))


def distances(target, per_channel, x):
    torch.manual_seed(2)
    model = nn.Sequential(
        bs.OverTime(nn.Linear(5, 3)), bs.LIF(v_threshold=0.5, surrogate=bs.Triangle())
    ).double()
    pda = bs.PotentialAdjustment(model, 1.0, target, per_channel=per_channel)
    x = x.clone().requires_grad_()
    model(x)
    loss = pda.loss()
    loss.backward()
    return loss.detach(), x.grad, model[0][0].weight.grad


PDA = [("spikes", False), ("spikes", True), ("gaussian", False), ("window", False)]
X, G, FLAT = (
    samples(4, 8, 3, 2, 2, seed=0),
    samples(4, 8, 3, 2, 2, seed=1),
    samples(4, 8, 5, seed=2),
)
SHARES = (slice(0, 3), slice(3, 8))  # uneven


def one_of_two(rank, folder):
    """Sets the variables of torchrun, with the port of `with_a_port`."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": (folder / "port").read_text(),
    }


def on_a_rank(rank, folder):
    """Writes the results of one of two ranks to a file."""
    torch.set_num_threads(1)
    one_of_two(rank, folder)
    with distributed.process_group("cpu") as together:
        here, found = SHARES[rank], {"ranks": (together.rank, together.size)}
        for name, layer in norms().items():
            holder = nn.ModuleDict({"it": layer})
            norm.sync_batch_norm(holder)
            found[name] = normalised(holder["it"], rank)
        for target, per_channel in PDA:
            found[target, per_channel] = distances(target, per_channel, FLAT[:, here])
        two = bs.readout.TWO(4, start_epoch=0)
        two.observe(FLAT[:, here], torch.arange(8)[here] % 5)
        found["counts"] = two.correct.clone(), two.seen.clone()
        two.end_epoch()
        found["TWO"] = two.weights
        torch.manual_seed(3)
        found["seed"] = int(draw_seed(CPU))
        found["sums"] = together.all_reduce(rank + 1, 0.5)
        found["gather"] = together.gather({"rank": rank})
        found["on_rank0"] = together.on_rank0(lambda: f"rank {rank}")
        try:
            together.on_rank0(lambda: [][rank])
        except IndexError as e:
            found["raised"] = str(e)
        torch.save(found, folder / f"{rank}.pt")
        together.all_reduce(0)
    # one rank reports its error; the other ends silently
    code = "nobody raised"
    try:
        with distributed.process_group("cpu") as together:
            together.all_reduce(0)
            raise RunError(f"of rank {rank}")
    except (RunError, SystemExit) as e:
        code = str(e)
    (folder / f"{rank}.end").write_text(code)


def join_two_groups(rank, folder):
    """Rank 0 leaves the first group slowly, so rank 1 joins the second one before it has ended."""
    one_of_two(rank, folder)
    leave = torch.distributed.destroy_process_group
    if rank == 0:
        torch.distributed.destroy_process_group = lambda: (time.sleep(1), leave())
    for _ in range(2):
        with distributed.process_group("cpu") as together:
            assert together.all_reduce(1) == [2]


def with_a_port(folder):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(s.getsockname()[1]))
    return folder


def exit_codes(function, folder):
    """Runs function(rank, folder) in two processes; a rank that still runs is killed: None."""
    folder = with_a_port(folder)
    ranks = torch.multiprocessing.spawn(function, (folder,), nprocs=2, join=False).processes
    for rank in ranks:
        rank.join(60)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


def test_a_rank_that_joins_the_next_group_early_waits_for_the_others(tmp_path):
    assert exit_codes(join_two_groups, tmp_path) == [0, 0]


def lose_the_other_rank(rank, folder):
    """Rank 1 is killed; rank 0 learns of it and gets the SIGTERM that torchrun sends."""
    one_of_two(rank, folder)
    try:
        with distributed.process_group("cpu") as together:
            together.all_reduce(0)
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            together.on_rank0(lambda: "outside the training")
            together.all_reduce(0)
    except RanksError as e:
        os.kill(os.getpid(), signal.SIGTERM)
        (folder / "said").write_text(str(e))


def test_a_lost_rank_is_named_also_outside_the_training(tmp_path):
    assert exit_codes(lose_the_other_rank, tmp_path) == [0, -signal.SIGKILL]
    assert (tmp_path / "said").read_text() == "another rank ended; start all of them again"


def test_sigterm_interrupts_a_rank_of_a_group(tmp_path, monkeypatch):
    """A rank that waits for the others ends with a message instead of without a word."""
    before = signal.getsignal(signal.SIGTERM)
    port = (with_a_port(tmp_path) / "port").read_text()
    for name, value in zip(distributed._TORCHRUN, ("0", "1", "127.0.0.1", port)):
        monkeypatch.setenv(name, value)
    with distributed.process_group("cpu"):
        pass
    assert signal.getsignal(signal.SIGTERM) is before
    try:
        with pytest.raises(KeyboardInterrupt), distributed.process_group("cpu"):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the next one does not cut off the message
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of the two ranks."""
    folder = with_a_port(tmp_path_factory.mktemp("two"))
    torch.multiprocessing.spawn(on_a_rank, (folder,), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", norms())
def test_statistics_over_all_ranks_equal_those_of_one_process(two, name):
    parts, gradients, buffers = normalised(norms()[name])
    a, b = (found[name] for found in two[1])
    for key, whole in parts.items():
        torch.testing.assert_close(torch.cat([a[0][key], b[0][key]], 1), whole, **CLOSE)
    assert a[1].keys() == gradients.keys()
    for key, whole in gradients.items():
        torch.testing.assert_close(a[1][key] + b[1][key], whole, **CLOSE)
    assert a[2].keys() == buffers.keys()
    for key, whole in buffers.items():
        torch.testing.assert_close(a[2][key], whole, **CLOSE)
        assert torch.equal(a[2][key], b[2][key])


@pytest.mark.parametrize(("target", "per_channel"), PDA)
def test_potentials_of_all_ranks_are_one_distribution(two, target, per_channel):
    loss, gx, gw = distances(target, per_channel, FLAT)
    a, b = (found[target, per_channel] for found in two[1])
    assert float(a[0]) == float(b[0]) == pytest.approx(float(loss), rel=1e-12)
    # each of two ranks adds its loss, so gradients are of twice the one
    torch.testing.assert_close(torch.cat([a[1], b[1]], 1), 2 * gx, **CLOSE)
    torch.testing.assert_close(a[2] + b[2], 2 * gw, **CLOSE)


def test_timestep_weights_use_the_counts_of_all_ranks(two):
    whole = bs.readout.TWO(4, start_epoch=0)
    whole.observe(FLAT, torch.arange(8) % 5)
    for found in two[1]:
        assert torch.equal(found["counts"][0], whole.correct)
        assert int(found["counts"][1]) == 8
    whole.end_epoch()
    assert all(torch.equal(found["TWO"], whole.weights) for found in two[1])


def test_ranks_exchange_values_and_errors(two):
    folder, (a, b) = two
    assert (a["ranks"], b["ranks"]) == ((0, 2), (1, 2))
    assert a["seed"] != b["seed"]
    assert a["sums"] == b["sums"] == [3.0, 1.0]
    assert (a["gather"], b["gather"]) == ([{"rank": 0}, {"rank": 1}], [])
    assert a["on_rank0"] == b["on_rank0"] == "rank 0"
    assert a["raised"] == b["raised"] == "list index out of range"
    ends = sorted((folder / f"{rank}.end").read_text() for rank in (0, 1))
    assert ends[0] == "1"  # the exit code of the one that is silent
    assert ends[1] in ("of rank 0", "of rank 1")


# ---- whole trainings -----------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path
import backspike as bs

losses = []
recipe = bs.recipes.digits().replace(json.loads(sys.argv[2]))
def listen(e):
    if e["event"] == "batch":
        losses.append(e["loss"])
bs.fit(recipe, sys.argv[1], listen=listen, report=False)
if losses:  # on rank 0
    print(json.dumps(losses))
# the ranks form a second process group
bs.fit(recipe.replace({"epochs": 1}), sys.argv[1] + "-again", report=False)
"""
# 117 = 3 * 32 + 21: the last batch is uneven, and so are the shares of two ranks
EQUAL = {
    "limit": 117,
    "epochs": 5,
    "batch_size": 32,
    "model": "ConvNet('6-8-P-8', size=8)",
    "readout": "TWO(start_epoch=0)",
    "neuron.surrogate": "Masked(Triangle(), p=0)",
    "augment": "()",
    "precision": "float32",
    "optimizer.lr": 0.01,
}
WITH = {
    "SyncBN": {},
    "SGS+PDA": {
        "scaling": "SGS(pool_pre=True)",
        "potential": "PDA(strength=0.1, warmup=6)",
        "ema": 0.0,
    },
    "parts": {
        "accumulate": 2,
        "clip": 1.0,
        "loss": "TET()",
        "neuron.surrogate": "Masked(Parametric(Triangle()), p=0)",
    },
    "TDBN": {
        "norm": "TDBN()",
        "neuron": "PLIF(v_threshold=0.5)",
        "neuron.surrogate": "Triangle()",
        "freeze_width": 2,
    },
    "truncated": {"truncate": 2, "accumulate": 2},
    "checkpoint": {"rule": "checkpoint"},
    "OTTT": {"rule": "ottt", "neuron": "PLIF()", "neuron.surrogate": "Triangle()"},
}


def torchrun(*words, size=2, restarts=0):
    """A command line, and an environment for it."""
    options = ["--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}"]
    words = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, words)]
    return words, {**os.environ, "OMP_NUM_THREADS": "1"}


def losses_alone(folder, recipe):
    losses = []
    recipe = bs.recipes.digits().replace(recipe)
    bs.fit(
        recipe,
        folder,
        listen=lambda e: losses.append(e["loss"]) if e["event"] == "batch" else None,
        report=False,
    )
    return losses, state(folder)


def losses_of_two(folder, recipe):
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    words, environment = torchrun(script, folder, json.dumps(recipe))
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # one rank prints
    return json.loads(line), state(folder)


def state(run):
    return checkpoint.read(Run.open(run), "last.ckpt")


def epochs(run):
    timing = ("seconds", "samples_per_second")
    return [
        {k: v for k, v in e.items() if k not in timing}
        for e in Run.open(run).log()
        if e["event"] == "epoch"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("changes", WITH.values(), ids=WITH)
def test_two_ranks_have_the_losses_of_one_process(tmp_path, changes):
    alone, whole = losses_alone(tmp_path / "1", EQUAL | changes)
    together, shared = losses_of_two(tmp_path / "2", EQUAL | changes)
    assert len(alone) == len(together) == 20
    np.testing.assert_allclose(together, alone, rtol=2e-4)
    assert torch.equal(shared["network"]["readout.weights"], whole["network"]["readout.weights"])
    assert not torch.equal(whole["network"]["readout.weights"], torch.ones(4))
    assert shared["best"]["accuracy"] == pytest.approx(whole["best"]["accuracy"], abs=2 / 180)
    kept = [e["train_accuracy"] for e in epochs(tmp_path / "1")]
    assert [e["train_accuracy"] for e in epochs(tmp_path / "2")] == kept


@pytest.mark.slow
def test_training_works_without_synchronised_norms(tmp_path):
    recipe = EQUAL | {
        "sync_norm": False,
        "limit": 0,
        "neuron.surrogate": "Masked(Triangle(), p=0.5)",
        "ema": 0.9,
    }
    losses, shared = losses_of_two(tmp_path / "2", recipe | {"augment": "(Shift(1), CutMix())"})
    assert losses[-1] < 0.8 * losses[0]
    assert shared["best"]["accuracy"] > 0.8
    draws = [rank["generators"]["torch"] for rank in shared["ranks"]]
    assert not torch.equal(*draws)


def train_with_silent_layers(rank, folder):
    one_of_two(rank, folder)
    torch.set_num_threads(1)
    recipe = bs.recipes.digits().replace(EQUAL | {"epochs": 2})
    bs.fit(recipe, folder / "run", report=False)


def test_all_ranks_look_for_silent_layers_behind_norms_over_all_ranks(tmp_path):
    assert exit_codes(train_with_silent_layers, tmp_path) == [0, 0]
    initial = next(e for e in Run.open(tmp_path / "run").log() if e["event"] == "initial")
    assert 0 in initial["firing_rate"].values()


LONG = {
    **EQUAL,
    "epochs": 40,
    "checkpoint_seconds": 0.05,
    "neuron.surrogate": "Masked(Triangle(), p=0.5)",
    "augment": "(Shift(1),)",
    "sync_norm": False,  # the harder case: ranks differ in their running statistics
}
FIELDS = [f"--{k}={v}" for k, v in LONG.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run on two ranks."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    words, environment = torchrun("-m", "backspike", "train", "digits", "--out", folder, *FIELDS)
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opening, *lines = done.stdout.splitlines()
    assert opening.startswith("digits: ")
    assert [line.split()[0] for line in lines] == ["epoch"] * 40 + [
        "test",
        "report:",
    ]  # all of it once
    return folder


def started(run, *words, **options):
    """Starts torchrun and waits until the run is in its third epoch."""
    words, environment = torchrun("-m", "backspike", *words, **options)
    process = subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.time() + 1800
    while len(Run(run).log()) < 3 and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    assert len(Run(run).log()) >= 3, "the run did not get so far"
    return process


def pid_of(process, rank):
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    pytest.fail(f"no rank {rank}")


def said(errors):
    """The lines of the program, without those of torchrun."""
    return [line for line in errors.splitlines() if line.startswith("backspike: ")]


def resumed(run):
    words, environment = torchrun("-m", "backspike", "resume", run)
    subprocess.run(words, env=environment, check=True, capture_output=True)


def same_run(a, b):
    x, y = state(a)["network"], state(b)["network"]
    return all(torch.equal(x[k], y[k]) for k in x) and epochs(a) == epochs(b)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_resumes_exactly(tmp_path, whole, rank):
    run = tmp_path / "run"
    process = started(run, "train", "digits", "--out", run, *FIELDS)
    os.kill(pid_of(process, rank), signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1
    (line,) = said(errors)
    assert line.startswith("backspike: another rank ended in epoch ")
    assert line.endswith(
        "continue from the last checkpoint with: "
        f"torchrun --nproc-per-node=2 -m backspike resume {run}"
    )
    assert not (run / "model.safetensors").exists()
    resumed(run)
    assert same_run(run, whole)


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_of_all_ranks(tmp_path, whole):
    """A terminal sends it to torchrun and to every rank, to which torchrun sends it again."""
    run = tmp_path / "run"
    process = started(run, "train", "digits", "--out", run, *FIELDS)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode != 0
    again = f"torchrun --nproc-per-node=2 -m backspike resume {run}"
    assert said(errors) == [f"backspike: stopped; a checkpoint was saved; to continue: {again}"]
    assert len(state(run)["ranks"]) == 2
    resumed(run)
    assert same_run(run, whole)


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank(tmp_path, whole):
    run = tmp_path / "run"
    process = started(run, "train", "digits", "--out", run, *FIELDS, restarts=1)
    os.kill(pid_of(process, 1), signal.SIGKILL)
    out, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert out.count("digits: ") == 2  # the second time from an epoch
    assert "40 epochs, from epoch " in out
    assert same_run(run, whole)


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_ranks(tmp_path):
    run = tmp_path / "run"
    process = started(run, "train", "digits", "--out", run, *FIELDS)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=600)
    result = train.resume(run, report=False)  # of one
    assert result.epochs == 40
    assert [e["epoch"] for e in epochs(run)] == list(range(40))
    assert len(state(run)["ranks"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["train", "nothing"], 2, "nothing"),
        (["train", "digits", "--memory", "4GB"], 2, "--memory is for one process"),
        (["study"], 2, "torchrun is for train and resume"),
        (
            ["train", "digits", "--out", "{tmp}", "--batch_size", "1"],
            1,
            "parts of 1 samples, too few for 2 ranks",
        ),
        (
            ["train", "digits", "--out", "{tmp}/x", "--model", "VGGSNN()"],
            1,
            "does not take this data",
        ),
        (["resume", "{tmp}"], 1, "no run folder"),
    ],
)
def test_only_one_rank_reports_an_error(tmp_path, words, code, text):
    words, environment = torchrun("-m", "backspike", *(w.format(tmp=tmp_path) for w in words))
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    (line,) = said(done.stderr)
    assert text in line
    assert f"exitcode  : {code}" in done.stderr  # torchrun's own is 1


@pytest.mark.slow
def test_a_sharded_spikformer_trains_as_a_whole_one(tmp_path):
    example = ROOT / "examples/sharded.py"
    words = [
        example,
        *["--dim", "32", "--depth", "2", "--heads", "4", "--batch", "16", "--steps", "3", "--out"],
    ]
    sharded, environment = torchrun(*words, tmp_path / "2.pt")
    alone = [sys.executable, *map(str, words), str(tmp_path / "1.pt")]
    said = [
        subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for command in (alone, sharded)
    ]
    assert len(said[0]) == len(said[1]) == 3 * 4
    np.testing.assert_allclose(*(np.array(lines[3::4], float) for lines in said), atol=2e-5)
    a, b = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    assert a.keys() == b.keys()
    for k in a:  # but for biases before BatchNorm, of which the gradient is nothing but rounding
        if k.endswith("weight"):
            torch.testing.assert_close(b[k], a[k], rtol=1e-4, atol=1e-5)
