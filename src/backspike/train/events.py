"""The events that a training writes to its log: `initial`, `epoch` and `watch`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis import activity, vitals
from ..analysis.diagnosis import diagnose
from ..analysis.finding import DRAW_WEIGHTS, list_names
from ..errors import option
from ..neuron.hooks import observe
from ..neuron.lif import LIF, Output
from ..readout import TWO
from .checkpoint import Progress, preserved_rng
from .evaluate import accuracy_and_loss
from .setup import Setup
from .step import Step

WATCHED = 64  # training samples on which `Watch` measures
# steps after which layers that were silent at the start are looked at again; in networks that learn
# an output layer of neurons may need 30
SILENT_STEPS = 50
GROWN = 10  # times the loss before training: above that, a training has diverged


def initial(setup: Setup) -> dict[str, Any]:
    """The loss, spikes and membrane potentials before training."""
    model, (x, y) = setup.network.model, _probe_batch(setup)
    with setup.train.autocast():
        counts = activity.histograms(model, x)
        probed = activity.probe(model, x)
        setup.network.eval()
        with torch.no_grad():
            o = model(x)
            loss = float(setup.recipe.loss_value(o, setup.network.readout(o), y))
    event = {"event": "initial", "loss": loss, "membrane_counts": counts, **probed}
    return event | _constants(model)


def _constants(model: nn.Module) -> dict[str, Any]:
    """The histograms of constants that differ within a layer, if there are any."""
    found = activity.constants(model)
    return {"constants": found} if found else {}


def epoch(setup: Setup, step: Step, progress: Progress) -> dict[str, Any]:
    """The results of an epoch; on rank 0 also the activity of its layers."""
    accuracy = loss = None
    if setup.validation:
        accuracy, loss = accuracy_and_loss(setup.evaluated, setup.validation, setup.recipe)
    loss_sum, correct = step.read()
    model, readout = setup.network.model, setup.network.readout
    event = {
        "event": "epoch",
        "epoch": progress.epoch,
        "loss": loss_sum / step.samples,
        "train_accuracy": correct / step.samples,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
        "lr": setup.rates.value(step.number),
        "seconds": progress.epoch_seconds,
        "samples_per_second": step.samples / max(progress.epoch_seconds, 1e-9),
        "readout_weights": readout.weights.tolist() if isinstance(readout, TWO) else None,
        "widths": activity.widths(model),
        **_constants(model),
        **step.scaling(),
    }
    if not setup.ranks.first:
        return event
    with setup.train.autocast():
        return event | activity.probe(model, _probe_batch(setup)[0])


def one_step(setup: Setup) -> dict[str, Any] | None:
    """What to know if a batch is larger than the training set."""
    asked, samples = setup.recipe.batch_size, len(setup.train.data)
    if asked <= samples:
        return None
    text = (
        f"{option('batch_size', asked)} is more than the {samples} training samples, so an epoch "
        "is a single step of all of them; a smaller one takes more steps"
    )
    return {"event": "one_step", "samples": samples, "text": text}


def untrained_loss(setup: Setup, log: list[dict[str, Any]]) -> float | None:
    """The loss before training that `diverged` compares with; None if there is none to compare.

    With PDA the loss of training contains more; a log that already says so needs no second word.
    """
    if setup.potential is not None or any(e.get("event") == "diverged" for e in log):
        return None
    return next((e.get("loss") for e in log if e.get("event") == "initial"), None)


def diverged(setup: Setup, epoch: dict[str, Any], before: float | None) -> dict[str, Any] | None:
    """What to do if the loss of an epoch is far above the one before training."""
    if before is None or epoch["loss"] <= GROWN * before:
        return None
    recipe = setup.recipe
    text = (
        f"the loss grew to {epoch['loss']:.3g} from {before:.3g} before training: train again "
        f"with a lower {option('optimizer.lr')} ({recipe.optimizer.lr:g})"
    )
    text += "" if recipe.clip else f" or with {option('clip', 1)}"
    return {"event": "diverged", "epoch": epoch["epoch"], "before": before, "text": text}


def silent_layers(log: list[dict[str, Any]]) -> list[str]:
    """The layers without a spike in the `initial` event of a log; [] if it already says so."""
    if any(e.get("event") == "silent" for e in log):
        return []
    firing: dict[str, float] = next(
        (e.get("firing_rate", {}) for e in log if e.get("event") == "initial"), {}
    )
    return [name for name, rate in firing.items() if rate == 0]


def silent(setup: Setup, step: Step, layers: list[str]) -> dict[str, Any] | None:
    """Which of these layers are still without a spike, and what to do; None if all fire.

    Looks at a copy in training mode: at first the running statistics of norms may silence layers
    that fire in training.
    """
    try:
        model = copy.deepcopy(setup.network.model).train()
    except Exception:  # a user's model that cannot be copied
        return None
    fired: set[str] = set()

    def see(name: str, _layer: LIF, out: Output) -> None:
        if out.spikes is not None and bool(out.spikes.any()):
            fired.add(name)

    with preserved_rng(setup.device), setup.train.autocast(), torch.no_grad(), observe(model, see):
        model(_probe_batch(setup)[0])
    if not (still := [name for name in layers if name not in fired]):
        return None
    text = (
        f"no spike in {list_names(still)}, neither before training nor after {step.number} steps: "
        f"{DRAW_WEIGHTS}, lower the threshold (v_threshold) or put a norm before the layer; "
        "bs.examine and `backspike doctor` say more"
    )
    return {"event": "silent", "layers": still, "steps": step.number, "text": text}


def _probe_batch(setup: Setup) -> tuple[Tensor, Tensor]:
    batches = setup.validation or setup.train
    size = min(setup.recipe.part_size, activity.SAMPLES_AT_ONCE, len(batches.data))
    return batches.take(torch.arange(size))


class Watch:
    """Measures the vitals, always on the same samples, without any effect on the training."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.batches: list[vitals.Batch] = []

    def measure(self, progress: Progress, step: Step) -> dict[str, Any]:
        setup = self.setup
        with preserved_rng(setup.device):
            self.batches = self.batches or self._batches()
            measured = vitals.take(
                setup.network, setup.optimizer, self.batches, setup.recipe, setup.train.autocast
            )
        steps, trained = setup.recipe.epochs * len(setup.train), step.number > 0
        model, own = setup.network.model, setup.own_neurons
        findings = diagnose(measured, model, setup.recipe, steps, trained, own)
        return {
            "event": "watch",
            "epochs": progress.epoch,
            "vitals": measured.to_dict(),
            "findings": [f.to_dict() for f in findings],
        }

    def _batches(self) -> list[vitals.Batch]:
        size = min(activity.SAMPLES_AT_ONCE, self.setup.recipe.part_size)
        train = self.setup.train
        return [train.take(part) for part in train.order(0)[:WATCHED].split(size)]
