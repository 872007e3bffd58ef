"""Memory budgets: sizes as text, the cheapest setting that fits, and the measured peaks."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib import import_module

import pytest
import torch

import backspike as bs
from backspike.cli import main
from backspike.data.batches import _place
from backspike.errors import RecipeError, RunError
from backspike.train import memory_budget, setup
from backspike.train.failures import explain_failures
from backspike.train.memory_budget import Rehearsal, parse_size, plan_memory, size_text

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="measures and limits a process through /proc"
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6_000_000_000),
        ("800 MB", 800_000_000),
        ("0.5GiB", 2**29),
        ("1tib", 2**40),
        ("64KB", 64_000),
        (" 2.5gb ", 2.5e9),
    ],
)
def test_sizes_are_parsed(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "6", "GB", "-1GB", "0GB", "6 G B", "6GBs", "1e3MB", "six GB"])
def test_a_text_that_is_not_a_size_is_refused(text):
    with pytest.raises(RecipeError, match="such as 6GB, 800MB or"):
        parse_size(text)


@pytest.mark.parametrize("size", [64_000_000, 999_400_000, 1_230_000_000, 6_000_000_000])
def test_written_sizes_can_be_parsed(size):
    assert parse_size(size_text(size)) == pytest.approx(size, rel=5e-3)


# ---- on a GPU, which is imitated -----------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """80 GB of which 60 are free and 1 is in use by this process; records what is set."""
    set_to = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: set_to.append(share)
    )
    return set_to


class Placed:
    """Stands for a tensor; says where it would be moved."""

    def __init__(self, nbytes):
        self.nbytes = nbytes

    def to(self, device):
        return str(device)


@pytest.mark.parametrize(
    ("gigabytes", "limit", "moved"),
    [(14, 0, True), (16, 0, False), (1.2, 6, True), (1.3, 6, False), (14, 79, True)],
)
def test_the_limit_governs_where_data_lie(gpu, gigabytes, limit, moved):
    """A quarter of what is left: of 60 GB free, or of the limit less 1 GB in use."""
    x, device = Placed(gigabytes * 10**9), torch.device("cuda")
    assert (_place(x, device, limit * 10**9) == "cuda") == moved


def test_a_limit_holds_on_the_gpu_until_the_training_ends(gpu, monkeypatch):
    monkeypatch.setattr(setup, "choose_device", torch.device)
    with setup.limited_on_gpu(recipe(), "cuda"):
        pass
    with setup.limited_on_gpu(recipe(memory_limit=20 * 10**9), "cpu"):
        pass
    assert gpu == []
    with suppress(RunError), setup.limited_on_gpu(recipe(memory_limit=20 * 10**9), "cuda"):
        assert gpu == [0.25]
        raise RunError("out of memory")
    assert gpu == [0.25, 1.0]


def test_a_training_lifts_its_limit_also_when_it_fails(gpu, monkeypatch, tmp_path):
    """On the CPU, as if it were a GPU."""
    within = []

    def fail(*arguments, **options):
        within.extend(gpu)
        raise RunError("stop")

    monkeypatch.setattr(setup, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(import_module("backspike.train.fit"), "set_up", fail)
    with pytest.raises(RunError, match="stop"):
        bs.fit(recipe(memory_limit=20 * 10**9), tmp_path / "run")
    assert (within, gpu) == ([0.25], [0.25, 1.0])


CAPPED = """
import resource, sys, torch
import backspike as bs
from backspike.errors import RunError
from backspike.system.memory_limit import memory_limit
before = resource.getrlimit(resource.RLIMIT_DATA)
torch.zeros(10)
with memory_limit(int(sys.argv[1])):
    torch.ones(1_000_000)  # 4 MB
    try:
        torch.ones(1_000_000_000)  # 4 GB
    except RuntimeError as e:
        print("refused" if "allocate memory" in str(e) else e)
assert resource.getrlimit(resource.RLIMIT_DATA) == before
recipe = bs.recipes.digits().replace({"limit": 60, "epochs": 1, "model": "ConvNet('4-P', size=8)"})
try:
    bs.fit(recipe.replace({"memory_limit": 1_000_000}), sys.argv[2], report=False)
except RunError as e:
    print(e)
"""


@linux
def test_a_process_cannot_take_more_than_its_limit(tmp_path):
    words = [sys.executable, "-c", CAPPED, str(2 * 10**9), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused, larger = done.stdout.splitlines()
    assert refused == "refused"
    assert "and its limit is 1,000,000; run in a new process" in larger
    assert not (tmp_path / "run").exists()


PRODUCT = """
import numpy as np
from backspike.system.memory_limit import memory_limit
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
resident = 1024 * int(status["VmRSS"].split()[0])
with memory_limit(resident + 10_000_000):
    print(int((np.ones((128, 128)) @ np.ones((128, 128))).sum()))
"""


@linux
def test_a_matrix_product_of_numpy_fits_within_any_limit():
    """OpenBLAS would end the process if it had to allocate 32 MB of buffers there."""
    done = subprocess.run([sys.executable, "-c", PRODUCT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{128**3}\n", "")


def test_what_onednn_says_without_memory_is_explained():
    with pytest.raises(RunError, match="out of memory with"), explain_failures(recipe()):
        raise RuntimeError("could not create a primitive")


def test_what_onednn_does_not_support_is_not_taken_for_missing_memory():
    text = "could not create a primitive descriptor for the matmul primitive."
    with pytest.raises(RuntimeError, match=text), explain_failures(recipe()):
        raise RuntimeError(text)


# ---- the choice, with a formula for the machine --------------------------------------------------

FIXED = 300e6
PER_SAMPLE = {"exact": 40e6, "recompute": 25e6, "checkpoint": 10e6, "8bit": 20e6}


@pytest.fixture
def machine(monkeypatch):
    """Peaks grow linearly with the part size; above 2.5 GB nothing runs.

    Returns the list of the recipes that were tried.
    """
    tried = []

    def rehearse(recipe, device, threads, own):
        tried.append(recipe)
        peak = FIXED + PER_SAMPLE[recipe.neuron.memory] * recipe.part_size
        known = peak <= 2.5e9
        seconds = (
            1.0 + LADDER.index(recipe.neuron.memory) * 0.25
            if recipe.neuron.memory in LADDER
            else 1.0
        )
        return Rehearsal(
            recipe, round(peak) if known else None, seconds if known else None, batch_norm=True
        )

    monkeypatch.setattr(memory_budget, "_rehearse", rehearse)
    monkeypatch.setattr(memory_budget, "_least", lambda recipe, device: 280_000_000)
    return tried


LADDER = ("exact", "recompute", "checkpoint")


def recipe(**changes):
    return bs.recipes.digits().replace({"batch_size": 64, **changes})


def best(budget, start="exact", size=64):
    """The first setting, from cheap to dear, that fits: by trying all."""
    for mode in LADDER[LADDER.index(start) :]:
        if FIXED + PER_SAMPLE[mode] * size <= 0.95 * budget:
            return mode, 1
    return "checkpoint", next(
        k for k in range(1, size + 1) if FIXED + 10e6 * -(-size // k) <= 0.95 * budget
    )


@pytest.mark.parametrize(
    "budget", [5e9, 2.6e9, 2.1e9, 2e9, 1.1e9, 0.95e9, 0.7e9, 0.55e9, 0.4e9, 0.33e9]
)
def test_the_cheapest_setting_that_fits_is_chosen(machine, budget):
    if budget > 2.6e9:
        machine_limit = 2.6e9  # more than the machine has: what cannot be rehearsed does not fit
    else:
        machine_limit = budget
    plan = plan_memory(recipe(), round(budget))
    chosen = plan.recipe.neuron.memory, plan.recipe.part_size
    mode, parts = best(machine_limit)
    assert chosen == (mode, -(-64 // parts))
    assert len(machine) <= 6
    assert plan.recipe.batch_size == 64


def test_the_ladder_starts_at_the_setting_of_the_recipe(machine):
    assert (
        plan_memory(recipe(**{"neuron.memory": "checkpoint"}), 10**9).recipe.neuron.memory
        == "checkpoint"
    )
    assert len(machine) == 1
    plan = plan_memory(recipe(**{"neuron.memory": "8bit"}), 10**9)
    assert (plan.recipe.neuron.memory, plan.recipe.part_size) == ("8bit", 32)


def test_the_plan_states_cost_peak_and_safety_margin(machine):
    events = []
    text = str(plan_memory(recipe(), "2GB", listen=events.append))
    assert text == (
        "to fit into 2GB: neuron.memory='recompute'; "
        "expected peak 1.9GB, 1.25 s per step instead of more than the free memory; "
        "the same gradients; limit 1.9GB, as 5 % of the budget is a safety margin"
    )
    assert [e["event"] for e in events] == ["rehearsal", "rehearsal", "memory"]
    assert events[0]["text"] == "tried as it is: more than the free memory"
    text = str(plan_memory(recipe(batch_size=32), "0.5GB"))
    assert (
        "neuron.memory='checkpoint' accumulate=2; expected peak 460MB, 1.5 s per step "
        "instead of 1.58GB, 1 s per step; +50 % time; BatchNorm sees 16 samples instead of 32"
    ) in text
    assert str(plan_memory(recipe(batch_size=32), "2GB")) == (
        "fits into 2GB as it is: expected peak 1.58GB, 1 s per step; "
        "limit 1.9GB, as 5 % of the budget is a safety margin"
    )


def test_an_impossible_budget_names_the_smallest_that_works(machine):
    with pytest.raises(
        RunError,
        match=r"does not train within 300MB .limit 285MB, as 5 % of the budget is a safety "
        "margin.: expected peak 310MB at least; the smallest budget that works is 330MB",
    ) as error:
        plan_memory(recipe(), "300MB")
    assert "8bit" in str(error.value)
    assert len(machine) <= 6
    assert plan_memory(recipe(), "330MB").recipe.part_size == 1


def test_a_hopeless_budget_is_refused_before_any_rehearsal(machine):
    with pytest.raises(
        RunError,
        match=r"does not train within 1MB .limit 0.95MB, as 5 % of the budget is a safety margin.: "
        "the libraries, the weights, their gradients and the optimizer take 280MB before the "
        "first sample; give more than 300MB",
    ):
        plan_memory(recipe(), "1MB")
    assert machine == []


def test_the_command_line_trains_the_chosen_settings(machine, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["backspike"])
    # this process is larger than the machine that the fixture imitates
    monkeypatch.setattr(
        import_module("backspike.train.fit"), "memory_limit", lambda _: nullcontext()
    )
    fields = [
        "--limit=60",
        "--epochs=1",
        "--model=ConvNet('4-P-4-P', size=8)",
        "--batch_size=32",
        "--neuron.memory=checkpoint",
    ]
    assert main(["train", "--memory", "0.5GB", "--out", str(tmp_path / "run"), *fields]) == 0
    out = capsys.readouterr().out
    assert "memory: tried --accumulate 4: 380MB, 1.5 s per step" in out
    assert "memory: to fit into 500MB: --accumulate 2" in out
    fields = json.loads((tmp_path / "run/recipe.json").read_text())["fields"]
    assert (fields["accumulate"], fields["memory_limit"]) == (2, 500_000_000)
    assert main(["train", "--memory", "6", "--out", str(tmp_path / "other")]) == 2
    assert "such as 6GB" in capsys.readouterr().err


# ---- real processes ------------------------------------------------------------------------------


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "numbers"), [("AdamW(lr=0.1)", 5), ("SGD(lr=0.1)", 4), ("Muon()", 4)]
)
def test_the_lower_bound_counts_weights_gradients_optimizer_and_average(optimizer, numbers):
    """AdamW keeps two numbers per weight, the others one; the averaged weights are another one."""

    def least(width):
        model = f"ConvNet('P-P', size=8, hidden=({width}, {width}))"
        return memory_budget._least(recipe(model=model, optimizer=optimizer, ema=0.9), None)

    small, large = least(4), least(4000)
    weights = 4000 * 4000 + 4000 * (4 + 2 + 10)
    assert large - small == pytest.approx(4 * numbers * weights, rel=0.05)
    assert small > 50_000_000  # torch


@linux
def test_the_lower_bound_lies_below_the_measured_peak():
    few = recipe(limit=60, batch_size=2)
    assert memory_budget._least(few, None) <= memory_budget._rehearse(few, None, 1).peak


def large(**changes):
    """Few weights, but much memory per step."""
    fields = {
        "model": "ConvNet('64-64-P-64-P', size=8)",
        "T": 8,
        "batch_size": 512,
        "epochs": 1,
        "limit": 512,
    }
    return bs.recipes.digits().replace({**fields, **changes})


TRAIN = """
import sys
from backspike import train
from backspike.run import Run
from backspike.train import memory_budget
train.fit(Run.open(sys.argv[1]).recipe(), sys.argv[2])
print(memory_budget._peak())
"""


@pytest.mark.slow
@linux
def test_a_training_stays_within_its_budget(tmp_path, monkeypatch):
    """At the end of the ladder, where steps are split."""
    start = large(**{"neuron.memory": "checkpoint"})
    rehearse = memory_budget._rehearse
    as_it_is = rehearse(start, None, 1)
    monkeypatch.setattr(
        memory_budget, "_rehearse", lambda r, *more: as_it_is if r == start else rehearse(r, *more)
    )
    budget = round(as_it_is.peak * 0.95)
    plan = plan_memory(start, budget, threads=1)
    assert plan.recipe.part_size < 512
    assert plan.after.peak <= 0.95 * budget < plan.before.peak
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(plan.recipe.to_dict()))
    words = [sys.executable, "-c", TRAIN, str(folder), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= budget


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (700_000_000, 700_000_000))
import backspike as bs
from backspike.train import memory_budget
fields = {"model": sys.argv[1], "limit": 512, "batch_size": 512}
found = memory_budget._rehearse(bs.recipes.digits().replace(fields), None, 1)
print(found.peak)
"""


@linux
@pytest.mark.parametrize(
    ("layout", "runs"),
    [
        pytest.param("4-P-4-P", True, marks=pytest.mark.slow),
        ("512-512-P-P", False),
        pytest.param("2000-9000-P-P", False, marks=pytest.mark.slow),
    ],
)
def test_a_network_that_cannot_run_does_not_fit(layout, runs):
    """In the step, or while the network is built."""
    model = f"ConvNet('{layout}', size=8)"
    done = subprocess.run([sys.executable, "-c", LIMITED, model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() != "None") is runs


def test_a_recipe_that_fails_for_another_reason_says_why(tmp_path):
    with pytest.raises(RunError, match="too many for inputs of size"):
        plan_memory(recipe(model="ConvNet('4-P-P-P-P', size=8)"), "1GB")
