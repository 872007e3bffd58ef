"""Learning-rate schedulers of torch: by name, of the user's own, resumed exactly."""

import numpy as np
import pytest
import torch
from helpers.training import (
    Own,
    Points,
    Stop,
    change_checkpoint,
    epochs,
    fit,
    own,
    same,
    stop_after,
    tiny,
    weights,
)
from torch.optim import lr_scheduler

from backspike import train
from backspike.errors import RecipeError, RunError
from backspike.recipes.values import Mean
from backspike.run import Run
from backspike.train import learning_rate

FOUR = {"epochs": 4, "warmup_epochs": 0.0, "optimizer.lr": 0.01}


def rates(tmp_path, monkeypatch, **changes):
    """The learning rate of every step of both groups, as the optimizer sees it."""
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **options):
        seen.append([float(group["lr"]) for group in self.param_groups])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    recipe = tiny(**{**FOUR, "neuron.learn": "('tau',)", **changes})
    fit(recipe, tmp_path / "run")
    return np.array(seen), Run.open(tmp_path / "run").log()


def small(**changes):
    return own().replace(changes)


STEPS = 4  # of an epoch: 120 samples in batches of 32


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [0.01] * 16),
        ("StepLR(1, gamma=0.5)", 0.0, [0.01 * 0.5 ** (i // 4) for i in range(16)]),
        ("MultiStepLR((1, 3))", 0.0, [0.01 * 0.1 ** ((i >= 4) + (i >= 12)) for i in range(16)]),
        (
            "MultiStepLR((2,))",
            1.0,
            [0.01 * min(1, (i + 1) / 5) * 0.1 ** (i >= 8) for i in range(16)],
        ),
    ],
)
def test_rates_by_name_are_those_of_the_formula(tmp_path, monkeypatch, schedule, warmup, expected):
    seen, log = rates(tmp_path, monkeypatch, schedule=schedule, warmup_epochs=warmup)
    np.testing.assert_allclose(seen[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(seen[:, 1], 0.1 * np.array(expected), rtol=1e-12)
    logged = [e["lr"] for e in log if e["event"] == "epoch"]
    if warmup == 0:
        np.testing.assert_allclose(logged, expected[::STEPS], rtol=1e-12)


def test_one_cycle_rises_and_falls_with_every_step(tmp_path, monkeypatch):
    seen, _ = rates(tmp_path, monkeypatch, schedule="OneCycleLR(pct_start=0.25)")
    # cosine from 0.01 / 25 up to 0.01 over the first 25 % of 16 steps, down to 0.01 / 25e4
    top, start, end = 0.01, 0.01 / 25, 0.01 / 25 / 1e4
    up, total = 0.25 * 16 - 1, 16 - 1
    expected = [
        start + (top - start) * (1 - np.cos(np.pi * i / up)) / 2
        if i <= up
        else end + (top - end) * (1 + np.cos(np.pi * (i - up) / (total - up))) / 2
        for i in range(16)
    ]
    np.testing.assert_allclose(seen[:, 0], expected, rtol=1e-9)


def test_no_step_follows_the_last_one(tmp_path, monkeypatch):
    """A linear OneCycleLR would go on to rates below 0, which no checkpoint may hold."""
    schedule = "OneCycleLR(anneal_strategy='linear')"
    _, log = rates(tmp_path, monkeypatch, schedule=schedule)
    assert all(e["lr"] > 0 for e in log if e["event"] == "epoch")


def test_a_plateau_lowers_the_rate_and_progress_does_not(tmp_path, monkeypatch):
    never = "ReduceLROnPlateau(factor=0.5, patience=0, threshold=-10.0)"
    seen, _ = rates(tmp_path / "a", monkeypatch, schedule=never)
    assert set(seen[:, 0]) == {0.01}  # every epoch counts as better
    always = "ReduceLROnPlateau(factor=0.5, patience=0, threshold=10.0)"
    seen, _ = rates(tmp_path / "b", monkeypatch, schedule=always)
    np.testing.assert_allclose(seen[::STEPS, 0], [0.01, 0.005, 0.0025, 0.00125])


def test_a_plateau_watches_the_validation_loss(tmp_path, monkeypatch):
    watched = []
    step = lr_scheduler.ReduceLROnPlateau.step
    monkeypatch.setattr(
        lr_scheduler.ReduceLROnPlateau,
        "step",
        lambda self, metrics, *a: watched.append(metrics) or step(self, metrics, *a),
    )
    result = fit(tiny(**FOUR, schedule="ReduceLROnPlateau()"), tmp_path / "a")
    assert watched == result.history["validation_loss"].tolist()
    watched.clear()
    result = fit(small(schedule="ReduceLROnPlateau()"), tmp_path / "b", Own(), Points())
    assert watched == result.history["loss"].tolist()


@pytest.mark.parametrize("batches", [3, 9])
@pytest.mark.parametrize(
    "schedule",
    ["StepLR(1)", "MultiStepLR((1, 2))", "OneCycleLR()", "ReduceLROnPlateau(patience=0)"],
)
def test_a_resumed_schedule_continues_exactly(tmp_path, schedule, batches):
    recipe = tiny(
        checkpoint_seconds=0,
        schedule=schedule,
        warmup_epochs=0.0 if "Cycle" in schedule else 0.5,
    )
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(batches))
    train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "parts")


def restarts(optimizer):
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2)


def per_batch(optimizer):
    return lr_scheduler.ExponentialLR(optimizer, 0.9), "batch"


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (restarts, [0.02, 0.01, 0.02, 0.01]),
        (per_batch, [0.02 * 0.9 ** (4 * n) for n in range(1, 5)]),
    ],
)
def test_a_scheduler_of_ones_own_is_used_and_resumed(tmp_path, scheduler, expected):
    data = {"model": Own(), "train": Points(), "test": Points(32)}
    torch.manual_seed(0)
    data["model"] = Own()
    result = fit(own(), tmp_path / "whole", **data, scheduler=scheduler)
    np.testing.assert_allclose(result.history["lr"], expected, rtol=1e-12)
    torch.manual_seed(0)
    data["model"] = Own()
    with pytest.raises(Stop):
        fit(
            small(checkpoint_seconds=0.0),
            tmp_path / "parts",
            **data,
            scheduler=scheduler,
            listen=stop_after(9),
        )
    with pytest.raises(RunError, match="scheduler of your own; give scheduler= again"):
        train.resume(tmp_path / "parts", **data)
    train.resume(tmp_path / "parts", **data, scheduler=scheduler, report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    env = Run.open(tmp_path / "parts").read_json("env.json")
    assert "schedule=" not in env["command"]


def one_cycle(optimizer, steps):
    return lr_scheduler.OneCycleLR(optimizer, 0.1, steps, anneal_strategy="linear")


@pytest.mark.parametrize(("every", "needed"), [("batch", 8), ("epoch", 2)])
def test_a_one_cycle_of_ones_own_may_be_longer_than_the_training_but_not_shorter(
    tmp_path, every, needed
):
    def lowest(steps):
        data = {"model": Own(), "train": Points(), "test": Points(32)}
        recipe, out = own().replace({"epochs": 2}), tmp_path / str(steps)
        result = fit(recipe, out, **data, scheduler=lambda o: (one_cycle(o, steps), every))
        return min(result.history["lr"])

    with pytest.raises(RunError, match=f"after every {every}: give it total_steps={needed}"):
        lowest(needed - 1)
    assert lowest(needed) > 0
    assert lowest(needed + 4) > 0


class Unstorable(lr_scheduler.LRScheduler):
    def __init__(self, optimizer):
        self.paths = [object()]
        super().__init__(optimizer)

    def get_lr(self):
        return [0.01 for _ in self.base_lrs]


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (lambda o: None, "must return a torch scheduler"),
        (lambda o: (restarts(o), "week"), "must return a torch scheduler"),
        (
            lambda o: restarts(torch.optim.SGD([torch.zeros(1)], lr=0.1)),
            "must schedule the optimizer that it is given",
        ),
        (Unstorable, "cannot be stored in a checkpoint"),
        (lambda o: lr_scheduler.StepLR(o), "recipe cannot be built"),
    ],
)
def test_schedulers_that_cannot_work_are_refused_before_the_folder_is_made(
    tmp_path, scheduler, words
):
    with pytest.raises(RunError, match=words) as e:
        fit(own(), tmp_path / "run", Own(), Points(), scheduler=scheduler)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_scheduler_that_fails_later_stops_the_run_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"epoch 1, .*unsupported operand"):
        fit(
            own(),
            tmp_path / "run",
            Own(),
            Points(),
            scheduler=lambda o: lr_scheduler.StepLR(o, "x"),
        )


def test_warm_up_and_a_scheduler_that_warms_up_exclude_each_other(tmp_path):
    with pytest.raises(RunError, match="OneCycleLR rises by itself"):
        fit(tiny(schedule="OneCycleLR()", warmup_epochs=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunError, match="set warmup_epochs=0"):
        fit(small(warmup_epochs=1.0), tmp_path / "run", Own(), Points(), scheduler=restarts)


@pytest.mark.parametrize("text", ["step", "StepLR(0)", "StepLR", "LambdaLR(print)", "3"])
def test_unknown_schedules_are_refused_in_one_line(text):
    with pytest.raises(RecipeError) as e:
        tiny(schedule=text)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["rates"]["groups"][0].update(lr=float("nan")),
        lambda s: s["rates"]["groups"][0].update(lr=-1.0),
        lambda s: s["rates"]["groups"][0].update(params=[]),
        lambda s: s["rates"]["schedulers"][0].update(step="x"),
        lambda s: s["rates"]["schedulers"].append({}),
        lambda s: s.update(rates=None),
    ],
)
def test_a_hostile_state_of_a_scheduler_is_refused(tmp_path, change):
    with pytest.raises(Stop):
        fit(
            tiny(schedule="StepLR(1)", checkpoint_seconds=0, warmup_epochs=0.0),
            tmp_path / "run",
            listen=stop_after(5),
        )
    change_checkpoint(Run.open(tmp_path / "run"), change)
    with pytest.raises(RunError, match="damaged"):
        train.resume(tmp_path / "run", report=False)


def test_rates_on_a_device_stay_tensors_which_a_recorded_step_needs():
    """As on a GPU, on the CPU: torch's schedulers fill the tensors in place."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([{"params": [weight], "lr_scale": 1.0}], lr=0.1)
    cpu = torch.device("cpu")
    recipe = tiny(schedule="StepLR(1, gamma=0.5)", warmup_epochs=0.0, readout=Mean())
    made = learning_rate.build(recipe, optimizer, 4, cpu)
    rate = optimizer.param_groups[0]["lr"]
    weight.grad = torch.ones(3)
    optimizer.step()
    made.end_epoch(1.0)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(recipe.optimizer.lr / 2)
    stored = made.state_dict()
    rate.fill_(0.7)
    made.load_state_dict(stored)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(recipe.optimizer.lr / 2)
