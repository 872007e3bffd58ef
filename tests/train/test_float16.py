"""float16 with a gradient scaler: the same gradients, skipped steps counted, exact resume."""

import math

import numpy as np
import pytest
import torch
from helpers.training import Stop, change_checkpoint, epochs, fit, same, stop_after, tiny, weights

from backspike import train
from backspike.errors import RunError
from backspike.run import Run
from backspike.train import checkpoint, setup

LONG = {"epochs": 12}  # 48 steps
SGD = {"optimizer": "SGD(lr=0.05)", "clip": 1.0, "warmup_epochs": 0.0}


@pytest.fixture
def overflowing(monkeypatch):
    """A scale so large that the first gradients overflow."""
    monkeypatch.setattr(
        setup, "gradient_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**40)
    )


def test_the_losses_are_close_to_those_of_float32(tmp_path):
    """SGD with clipping sees the size of the gradient, which a scale left in it would change."""
    a = fit(tiny(precision="float32", **SGD), tmp_path / "a").history["loss"]
    b = fit(tiny(precision="float16", **SGD), tmp_path / "b").history["loss"]
    np.testing.assert_allclose(a, b, rtol=0.03)
    assert not np.array_equal(a, b)
    assert all(e["skipped_steps"] == 0 for e in epochs(tmp_path / "b"))
    assert all("skipped_steps" not in e for e in epochs(tmp_path / "a"))


def test_in_chunks_of_time_the_gradients_are_unscaled_as_well(tmp_path):
    more = {**SGD, "truncate": 2}
    a = fit(tiny(precision="float32", **more), tmp_path / "a").history["loss"]
    b = fit(tiny(precision="float16", **more), tmp_path / "b").history["loss"]
    np.testing.assert_allclose(a, b, rtol=0.05)


def test_steps_that_overflow_are_skipped_and_logged(tmp_path, overflowing):
    fit(tiny(precision="float16", **SGD, **LONG), tmp_path / "run")
    skipped = [e["skipped_steps"] for e in epochs(tmp_path / "run")]
    scales = [e["loss_scale"] for e in epochs(tmp_path / "run")]
    assert 4 < sum(skipped) < 48
    assert skipped[-1] == 0
    assert skipped[0] > 0
    assert scales == [2.0**40 / 2 ** sum(skipped[: i + 1]) for i in range(12)]
    assert all(math.isfinite(e["loss"]) for e in epochs(tmp_path / "run"))


def test_a_skipped_step_changes_no_weight(tmp_path, overflowing):
    stopped = []

    def listen(event):
        if event["event"] == "batch" and event["batch"] == 2:
            stopped.append(event)
            raise Stop

    recipe = tiny(precision="float16", checkpoint_seconds=0, **SGD)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", listen=listen)
    torch.manual_seed(recipe.seed)
    before = setup.set_up(recipe).network.state_dict()
    run = Run.open(tmp_path / "run")
    state = checkpoint.read(run, "last.ckpt")
    assert state["position"] == [0, 1, 1]  # after one step
    assert state["scaler"][1] == 1
    learned = [k for k in before if k.endswith((".weight", ".bias"))]
    assert learned
    assert all(torch.equal(before[k], state["network"][k]) for k in learned)


@pytest.mark.parametrize("batches", [2, 26])
def test_a_run_that_skips_steps_resumes_exactly(tmp_path, overflowing, batches):
    recipe = tiny(precision="float16", checkpoint_seconds=0, ema=0.9, **SGD, **LONG)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(batches))
    train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "parts")


def test_adam_skips_steps_as_well(tmp_path, overflowing):
    fit(tiny(precision="float16"), tmp_path / "run")
    assert epochs(tmp_path / "run")[0]["skipped_steps"] > 0


def test_a_loss_that_is_not_finite_still_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"became (nan|inf)|NaN or infinite"):
        fit(tiny(precision="float16", **{**SGD, "optimizer": "SGD(lr=1e30)", "clip": 0.0}),
            tmp_path / "run")  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s["scaler"][0].update(scale=float("inf")),
        lambda s: s["scaler"][0].update(scale=-1.0),
        lambda s: s["scaler"][0].update(more=1),
        lambda s: s["scaler"].__setitem__(1, -1),
        lambda s: s.pop("scaler"),
    ],
)
def test_a_hostile_state_of_the_scaler_is_refused(tmp_path, change):
    with pytest.raises(Stop):
        fit(
            tiny(precision="float16", checkpoint_seconds=0),
            tmp_path / "run",
            listen=stop_after(3),
        )
    change_checkpoint(Run.open(tmp_path / "run"), change)
    with pytest.raises(RunError, match="damaged"):
        train.resume(tmp_path / "run", report=False)
