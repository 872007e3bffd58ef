"""Training: `fit` runs a recipe into a run folder; `resume` goes on after any stop; `evaluate` and `load` use what is there.

A resumed run equals the uninterrupted one bit for bit on the same machine: the checkpoint holds the weights, the optimizer,
the averaged weights, the readout with its counts, which way products take (dense or sparse), every generator's state and the
position in the epoch. The choice of the best epoch is made on the validation split, never on the test set.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import platform
import random
import shlex
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from . import __version__, data, measure, product
from .batches import Batches
from .choices import choose
from .cuda_graph import Replayed
from .heap import release_heap
from .hooks import spiking_layers
from .neuron import check_gradients, neuron_parameters
from .readout import TWO
from .recipe import Recipe
from .run import Run, RunError
from .scaling import mask_weight_gradients
from .surrogate import Masked

Listener = Callable[[dict[str, Any]], None]
CHECKPOINT_VERSION = 2
READ_EVERY = 20  # steps between two looks at the loss, where looking makes the host wait for the device


@dataclass(frozen=True)
class Result:
    """What a run came to. Accuracies lie in [0, 1]; `test_accuracy` is of the epoch that was best on the validation split."""

    run: str
    test_accuracy: float | None
    test_accuracy_last: float | None
    validation_accuracy: float | None
    best_epoch: int | None
    epochs: int
    seconds: float


class Network(nn.Module):
    """A model and its readout: `[T, B, ...]` to logits `[B, K]`. `network.model(x)` gives the outputs over time `[T, B, K]`."""

    def __init__(self, model: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.readout = readout

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.model(x))


def fit(
    recipe: Recipe,
    out: str | Path,
    model: nn.Module | None = None,
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    force: bool = False,
    device: str | torch.device | None = None,
    listen: Listener | None = None,
    report: bool = True,
) -> Result:
    """Trains `recipe` into the folder `out` and returns what came of it.

    model: your own module `[T, B, ...] -> [T, B, K]` in place of the recipe's. train, validation, test: your own data sets
    (`len(d)`, `d[i] -> (x, y)`) in place of the recipe's; without a validation set the last epoch is the one that counts.
    force: replace a run that is already there. listen: called with every event (a dict; see docs/run-folder.md).
    report=False leaves report.html out; `backspike report` makes it later.
    Sets torch's global seed. Raises RunError, DataError or RecipeError in one line; KeyboardInterrupt after a checkpoint.
    """
    run = Run.free(out, force)
    # everything is built and tried before an old run is deleted
    training = _Training(run, recipe, model, _sets(recipe, train, validation, test), device, listen)
    with run.created(training.recipe, training.own):
        return training.run_to_the_end(report)


def resume(
    run: str | Path,
    model: nn.Module | None = None,
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    device: str | torch.device | None = None,
    listen: Listener | None = None,
    values: tuple[type, ...] = (),
    report: bool = True,
) -> Result:
    """Goes on from the last checkpoint of a run folder, with the same arguments as `fit` had. values: see `load`."""
    folder = Run.open(run)
    recipe = folder.recipe(values)
    if folder.log()[-1:] and folder.log()[-1].get("event") == "done":
        return _already_done(folder, listen, report)
    _check_own(folder, model=model, data=train)
    with folder.locked():
        training = _Training(folder, recipe, model, _sets(recipe, train, validation, test), device, listen)
        if folder.has("last.ckpt"):
            training.restore()
        else:  # stopped before the first checkpoint
            folder.cut_log(0)
        return training.run_to_the_end(report)


def _already_done(run: Run, listen: Listener | None, report: bool) -> Result:
    done = run.log()[-1]
    if report and not run.has("report.html"):
        from .report import write

        write(run.path)
    if listen:
        listen(done)
    return Result(**{k: done.get(k) for k in Result.__dataclass_fields__})  # type: ignore[arg-type]


def _check_own(run: Run, **given: Any) -> None:
    """What `fit` was given in place of the recipe's has to be given again."""
    for what, value in given.items():
        if what in run.own() and value is None:
            arguments = {"model": "model=", "data": "train= and test="}[what]
            raise RunError(f"{run.path} was trained with a {what} of your own; give {arguments} again, in Python")


def load(run: str | Path, model: nn.Module | None = None, *, values: tuple[type, ...] = ()) -> Network:
    """The trained network of a run folder, in evaluation mode, on the CPU: `[T, B, ...]` to logits `[B, K]`.

    model: your own module, if `fit` was given one. values: classes of your own that the recipe's text names.
    """
    folder = Run.open(run)
    recipe = folder.recipe(values)
    if not folder.has("model.safetensors"):
        raise RunError(f"{folder.path} has no model.safetensors; finish it with: backspike resume {folder.path}")
    network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
    try:
        network.load_state_dict(load_safetensors(folder.read("model.safetensors")))
    except Exception as e:  # whatever a damaged file makes the reader raise
        text = _first_line(e)
        raise RunError(
            f"{folder.path / 'model.safetensors'} is damaged or belongs to another network (give model= again): {text}"
        ) from e
    return network.eval()


def evaluate(
    run: str | Path,
    model: nn.Module | None = None,
    test: Any = None,
    *,
    device: str | torch.device | None = None,
    values: tuple[type, ...] = (),
) -> dict[str, Any]:
    """Runs the test set through the trained network of a run, and leaves what it measures in `evaluation.npz`.

    Returns accuracy, loss, number of samples, and the accuracy if stopped after each timestep. The arguments are `load`'s and
    `fit`'s.
    """
    folder = Run.open(run)
    _check_own(folder, model=model, data=test)
    network = load(run, model, values=values).to(_device(device))
    recipe = folder.recipe(values)
    if recipe.channels_last:
        _to_channels_last(network)
    batches = Batches(_load(recipe).test if test is None else test, recipe, _device(device))
    accuracy, loss = _test(network, batches, recipe)
    over_time = _measure(folder, network, batches)
    n = len(batches.data)
    return {"run": str(run), "test_accuracy": accuracy, "test_loss": loss, "n": n, "accuracy_over_time": over_time}


def _measure(run: Run, network: Network, batches: Batches) -> list[float]:
    """Writes evaluation.npz; the accuracy if stopped after each timestep."""
    arrays = measure.collect(network, batches)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    run.write("evaluation.npz", packed.getvalue())
    return arrays["accuracy_over_time"].tolist()


def rehearse(recipe: Recipe, steps: int, device: str | None = None) -> tuple[list[float], bool]:
    """A run in short that leaves nothing behind: the seconds of each step, and whether there is BatchNorm."""
    with TemporaryDirectory() as folder:
        run = Run.free(Path(folder) / "run")
        training = _Training(run, recipe, None, _load(recipe), device, None)
        with run.created(training.recipe):
            seconds = training.rehearse(steps)
    return seconds, any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in training.network.modules())


def _sets(recipe: Recipe, train: Any, validation: Any, test: Any) -> data.Splits | _Own:
    if train is None:
        if validation is not None or test is not None:
            raise RunError("validation= and test= need train= beside them")
        return _load(recipe)
    return _Own(train, validation, test)


def _load(recipe: Recipe) -> data.Splits:
    T = recipe.T if data.source(recipe.data).kind == "events" else None
    by: Any = recipe.by
    return data.load(recipe.data, recipe.root or None, T, recipe.size or None, recipe.limit or None, by)


@dataclass(frozen=True)
class _Own:
    """The user's data sets in the form of `bs.data.Splits`."""

    train: Any
    validation: Any
    test: Any
    num_classes: int | None = None
    note: str = "data sets of the user's own"
    credit: str = ""


def _device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as e:
        raise RunError(f"unknown device {device!r}; use cpu, cuda or cuda:1") from e
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RunError("no CUDA device can be used here; use --device cpu")
    return found


def _first_line(e: BaseException) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__


def out_of_memory(e: BaseException) -> bool:
    """Whether this, or what it comes from, says that memory could not be had."""
    here = isinstance(e, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(e)
    return here or (e.__cause__ is not None and out_of_memory(e.__cause__))


@dataclass
class _Stop:
    yes: bool = False


@contextmanager
def _stop_asked() -> Iterator[_Stop]:
    """A flag that Ctrl-C or SIGTERM sets, so that a step ends before the run does; a second one ends it at once."""
    asked = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: Any) -> None:
        asked.yes = True
        signal.signal(number, before[signal.Signals(number)])

    for s in before:
        signal.signal(s, ask)
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class _Training:
    """A run in progress: what `fit` builds, a checkpoint holds and `resume` restores."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: nn.Module | None,
        sets: Any,
        device: str | torch.device | None,
        listen: Listener | None,
    ) -> None:
        self.run, self.recipe, self.listen, self.device = run, recipe, listen or (lambda event: None), _device(device)
        torch.manual_seed(recipe.seed)
        try:
            network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
            self.network = network.to(self.device)
        except (ValueError, TypeError, RuntimeError) as e:
            raise RunError(f"the recipe cannot be built: {_first_line(e)}") from e
        self.train, self.validation, self.test = (
            None if d is None else Batches(d, recipe, self.device) for d in (sets.train, sets.validation, sets.test)
        )
        self.sets = sets
        self.own = ["model"] * (model is not None) + ["data"] * isinstance(sets, _Own)
        # the position: epoch and batch are the next to be done
        self.epoch, self.batch, self.step = 0, 0, 0
        # of the epoch so far: losses, right answers and norms of gradients are added up on the device, where no step waits
        # for them, and read now and then; a value that is not finite stays in its sum
        self.sums, self.seen = torch.zeros(3, dtype=torch.float64, device=self.device), 0
        self.loss_sum, self.right, self.loss = 0.0, 0, math.nan
        self.waits = self.device.type == "cpu"  # reading costs nothing there
        self.best: dict[str, Any] | None = None
        self.bad_epochs = 0
        self.scaling_said = False
        self.elapsed, self.epoch_seconds = 0.0, 0.0
        self._choose(self._checked_sample())
        recipe = self.recipe
        try:
            self.averaged = copy.deepcopy(self.network) if recipe.ema else None
            self.optimizer = recipe.optimizer.build(_groups(self.network.model, recipe))
            self.neurons_learn = bool(neuron_parameters(self.network.model))
        except (ValueError, TypeError, RuntimeError) as e:
            raise RunError(f"the recipe cannot be built: {_first_line(e)}") from e
        # the parts that hook into the model; a copy of it, the averaged one, is left alone
        try:
            self.potential = recipe.potential.build(self.network.model) if recipe.potential else None
            self.scaling = recipe.scaling.build(self.network.model) if recipe.scaling else None
        except ValueError as e:
            raise RunError(f"the recipe cannot be built: {_first_line(e)}") from e
        if recipe.patience and self.validation is None:
            raise RunError("patience counts epochs without a better validation accuracy; give validation=, or patience=0")
        self.weight_mask = mask_weight_gradients(self.network.model, recipe.weight_mask) if recipe.weight_mask else None
        self.replayed = Replayed(self._compute, self.device, self._not_recorded) if self._records() else None

    @property
    def evaluated(self) -> Network:
        """The network whose accuracy counts and whose weights are saved."""
        return self.averaged or self.network

    def _choose(self, x: Tensor) -> None:
        """What the recipe leaves open: precision and memory layout."""
        self.recipe, self.reasons = (chosen := choose(self.recipe, self.network.model, x)).recipe, chosen.reasons
        for batches in filter(None, (self.train, self.validation, self.test)):
            batches.recipe = self.recipe
        if self.recipe.channels_last:
            _to_channels_last(self.network)

    def _records(self) -> bool:
        """Whether steps are recorded as a CUDA graph."""
        recipe = self.recipe
        if recipe.cuda_graph is False:
            return False
        why = None
        if self.device.type != "cuda":
            why = "needs a GPU; leave it out, or run where torch.cuda.is_available()"
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            why = "cannot record a step of several processes; leave it out"
        elif recipe.scaling is not None:
            why = "cannot record SGS, which looks at the graph of autograd; leave one of them out"
        elif recipe.potential is not None and recipe.potential.warmup:
            why = "cannot record PDA's warm-up, a number of the host; set potential's warmup to 0"
        if why and recipe.cuda_graph:
            raise RunError(f"--cuda_graph {why}")
        return why is None

    def _not_recorded(self, why: str) -> None:
        if self.recipe.cuda_graph:
            raise RunError(f"--cuda_graph: this step cannot be recorded ({why}); set --cuda_graph False")
        self._say("cuda_graph", text=f"steps are launched one kernel after the other, as they cannot be recorded: {why}")

    def _checked_sample(self) -> Tensor:
        """One sample `[T, 1, ...]` that went through the network, so that a wrong shape is said before anything is trained."""
        assert self.train is not None
        try:
            x, y = self.train.take(torch.zeros(1, dtype=torch.int64))
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as e:
            raise RunError(f"the first sample of the training data cannot be read: {_first_line(e)}") from e
        self.network.eval()
        try:
            with torch.no_grad(), self.train.autocast():
                o = self.network.model(x)
        except (RuntimeError, ValueError, TypeError) as e:
            text = _first_line(e)
            raise RunError(f"the model does not take this data, a batch of shape {list(x.shape)} [T, B, ...]: {text}") from e
        if o.dim() != 3 or o.shape[:2] != x.shape[:2]:
            raise RunError(f"the model must give outputs over time [T, B, K]; it gave {list(o.shape)} for {list(x.shape)}")
        K = o.shape[2]
        needed = self.sets.num_classes or int(y.max()) + 1
        if needed > K:
            raise RunError(f"the model has {K} outputs and the data {needed} classes; set num_classes={needed}")
        for batches in filter(None, (self.train, self.validation, self.test)):
            batches.expect_classes(K)
        return x

    # ---- the story -------------------------------------------------------------------------------------------------

    def run_to_the_end(self, report: bool = True) -> Result:
        if not self.run.has("last.ckpt"):
            self._begin()
        start = {"run": str(self.run.path), "recipe": self.recipe.to_dict(), "epochs": self.recipe.epochs, "epoch": self.epoch}
        self._say("start", **start, chosen=self.reasons)
        with _stop_asked() as asked:
            while self.epoch < self.recipe.epochs and not self._out_of_patience():
                self._train_epoch(asked)
                self._end_epoch()
        return self._finish(report)

    def _begin(self) -> None:
        self.run.write_json("env.json", self._environment())
        x = self._probed()
        assert self.train is not None
        with self.train.autocast():
            histograms = measure.histograms(self.network.model, x)
            probed = measure.probe(self.network.model, x)
        self.run.append_log({"event": "initial", "membrane_counts": histograms, **probed})
        self.save()
        release_heap()

    def rehearse(self, steps: int) -> list[float]:
        """All that a run does, each a little; the seconds of every step."""
        assert self.train is not None
        with self._said():
            self._begin()
            seconds = []
            for x, y in islice(chain.from_iterable(map(self.train.training, count())), steps):
                started = time.monotonic()
                self._train_step(x, y)
                self._read()
                seconds.append(time.monotonic() - started)
            self.validation, self.test = (b.first_part() if b else None for b in (self.validation, self.test))
            self._end_epoch()
            self._finish(report=True)
        return seconds

    def _train_epoch(self, asked: _Stop) -> None:
        assert self.train is not None
        self._set_mask_probability()
        if 0 < self.recipe.freeze_width <= self.epoch:
            learning = [p for p in neuron_parameters(self.network.model) if p.requires_grad]
            for parameter in learning:
                parameter.requires_grad_(False)
            if learning and self.replayed:
                self.replayed.forget()
        started = saved = time.monotonic()
        before = self.epoch_seconds
        batches = len(self.train)
        with self._said():
            for x, y in self.train.training(self.epoch, first=self.batch):
                self._train_step(x, y)
                if self.scaling is not None and not self.scaling_said:
                    self._say("scaling", scaled=self.scaling.scaled, not_scaled=self.scaling.not_scaled)
                    self.scaling_said = True
                self.batch += 1
                now = time.monotonic()
                self.epoch_seconds = before + now - started
                rate, at = self.seen / max(self.epoch_seconds, 1e-9), {"epoch": self.epoch, "batch": self.batch}
                self._say("batch", **at, batches=batches, loss=self.loss, samples_per_second=rate)
                if asked.yes:
                    self.save()
                    raise KeyboardInterrupt
                if now - saved >= self.recipe.checkpoint_seconds:
                    self.save()
                    saved = now

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What goes wrong in a step, in one line; the last checkpoint stands."""
        try:
            yield
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError, MemoryError) as e:
            if out_of_memory(e):
                parts = self.recipe.accumulate
                raise RunError(
                    "out of memory; start anew with --memory SIZE (such as 4GB), which chooses what is kept and how large the "
                    f"parts of a step are, or with --accumulate {2 * parts}"
                ) from e
            raise RunError(f"epoch {self.epoch}, batch {self.batch}: {_first_line(e)}") from e

    def _train_step(self, x: Tensor, y: Tensor) -> None:
        recipe, network = self.recipe, self.network
        if not network.model.training:
            network.train()
        lr = self._learning_rate()
        for group in self.optimizer.param_groups:
            rate = lr * group["lr_scale"]
            if self.replayed:
                _on_device(group, self.device).fill_(rate)
            else:
                group["lr"] = rate
        (self.replayed or self._compute)(x, y)
        self.step += 1
        self.seen += len(y)
        if self.waits or self.step % READ_EVERY == 0:
            self._read()
        if self.averaged is not None:
            # a young average forgets faster, or it would long hold the weights of the start
            _average(self.averaged, network, min(recipe.ema, self.step / (self.step + 9)))

    def _compute(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward and the optimizer's step. All that changes lies in tensors and nothing waits for the device, so
        that it can be recorded."""
        recipe, network = self.recipe, self.network
        assert self.train is not None
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part_x, part_y in zip(x.chunk(recipe.accumulate, dim=1), y.chunk(recipe.accumulate)):
            with self.train.autocast():
                o = network.model(part_x).float()
            logits = network.readout(o)
            loss = recipe.loss.value(o, logits, part_y)
            if self.potential is not None:
                loss = loss + self.potential.loss()
            loss = loss * (len(part_y) / len(y))
            loss.backward()
            total += loss.detach()
            self._observe(o.detach(), logits.detach(), part_y)
        parameters = [p for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.sums[0] += total * len(y)
        self.sums[2] += norm
        if self.waits:
            self._check()
        if self.neurons_learn:
            check_gradients(network.model)
        if recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
        self.optimizer.step()

    def _observe(self, o: Tensor, logits: Tensor, y: Tensor) -> None:
        y = y.argmax(-1) if y.dim() == 2 else y  # of a mixed sample the larger share counts
        if isinstance(self.network.readout, TWO):
            self.network.readout.observe(o, y)
        self.sums[1] += (logits.argmax(-1) == y).sum()

    def _read(self) -> None:
        """Waits for the device and takes from it what came out of the steps so far."""
        self.loss_sum, self.right = self._check()
        self.loss = self.loss_sum / max(self.seen, 1)

    def _check(self) -> tuple[float, int]:
        """The sums of losses and of right answers, if the losses and gradients were finite."""
        losses, right, norms = self.sums.tolist()
        if math.isfinite(losses) and math.isfinite(norms):
            return losses, int(right)
        what, value = ("gradient", norms) if math.isfinite(losses) else ("loss", losses)
        last = self.batch if self.waits else f"{max(self.batch - READ_EVERY + 1, 0)} to {self.batch}"
        raise RunError(
            f"the {what} became {value} in epoch {self.epoch}, batch {last}; lower --optimizer.lr "
            f"({self.recipe.optimizer.lr}) or set --clip 1 (the last checkpoint is intact)"
        )

    def _learning_rate(self) -> float:
        assert self.train is not None
        recipe, per_epoch = self.recipe, len(self.train)
        warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
        if self.step < warmup:
            return recipe.optimizer.lr * (self.step + 1) / (warmup + 1)
        if recipe.schedule == "constant":
            return recipe.optimizer.lr
        return recipe.optimizer.lr * 0.5 * (1 + math.cos(math.pi * (self.step - warmup) / max(total - warmup, 1)))

    def _set_mask_probability(self) -> None:
        surrogate, end = self.recipe.neuron.surrogate, self.recipe.mask_p_end
        if end is None or not isinstance(surrogate, Masked):
            return
        p = surrogate.p + (end - surrogate.p) * self.epoch / max(self.recipe.epochs - 1, 1)
        for network in (self.network, self.averaged):
            for layer in spiking_layers(network).values() if network else ():
                assert layer.mask_p is not None
                layer.mask_p.fill_(p)

    def _end_epoch(self) -> None:
        self._read()
        readout = self.network.readout
        if isinstance(readout, TWO):
            readout.end_epoch()
            if self.averaged is not None:
                self.averaged.readout.load_state_dict(readout.state_dict())
        started = time.monotonic()
        release_heap()  # what training took in pieces of its sizes, a test takes in others
        event = self._epoch_event()
        accuracy, loss = event["validation_accuracy"], event["validation_loss"]
        score = (accuracy, -loss) if accuracy is not None else (self.epoch, 0.0)
        if self.best is None or score >= tuple(self.best["score"]):
            self.best = {"score": list(score), "epoch": self.epoch, "accuracy": accuracy}
            self.run.write("best.ckpt", _packed({"network": self.evaluated.state_dict(), "epoch": self.epoch}))
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        self.elapsed += self.epoch_seconds + time.monotonic() - started
        self.run.append_log(event)
        self.epoch += 1
        self.batch, self.seen, self.epoch_seconds = 0, 0, 0.0
        self.sums.zero_()
        self.save()
        release_heap()
        self.listen(event)

    def _epoch_event(self) -> dict[str, Any]:
        accuracy, loss = _test(self.evaluated, self.validation, self.recipe) if self.validation else (None, None)
        readout = self.network.readout
        event = {
            "event": "epoch",
            "epoch": self.epoch,
            "loss": self.loss_sum / self.seen,
            "train_accuracy": self.right / self.seen,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
            "lr": self._learning_rate(),
            "seconds": self.epoch_seconds,
            "samples_per_second": self.seen / max(self.epoch_seconds, 1e-9),
            "readout_weights": readout.weights.tolist() if isinstance(readout, TWO) else None,
            "widths": measure.widths(self.network.model),
        }
        assert self.train is not None
        with self.train.autocast():
            return event | measure.probe(self.network.model, self._probed())

    def _probed(self) -> Tensor:
        """The batch on which layers are measured."""
        batches = self.validation or self.train
        assert batches is not None
        return batches.take(torch.arange(min(self.recipe.part_size, measure.SAMPLES_AT_ONCE, len(batches.data))))[0]

    def _out_of_patience(self) -> bool:
        return 0 < self.recipe.patience <= self.bad_epochs

    def _finish(self, report: bool) -> Result:
        """Tests the last and the best epoch, leaves weights, measurements, log and report."""
        last = _test(self.evaluated, self.test, self.recipe)[0] if self.test else None
        assert self.best is not None
        final, best_is_last = self.evaluated, self.best["epoch"] == self.epoch - 1
        if not best_is_last:
            final.load_state_dict(_unpacked(self.run, "best.ckpt")["network"])
        accuracy = last if best_is_last else _test(final, self.test, self.recipe)[0] if self.test else None
        state = {k: v.contiguous() for k, v in final.state_dict().items()}
        self.run.write("model.safetensors", save_safetensors(state, metadata={"backspike": __version__}))
        if self.test is not None:
            _measure(self.run, final, self.test)
        result = Result(
            run=str(self.run.path),
            test_accuracy=accuracy,
            test_accuracy_last=last,
            validation_accuracy=self.best["accuracy"],
            best_epoch=self.best["epoch"],
            epochs=self.epoch,
            seconds=round(self.elapsed, 3),
        )
        done = {"event": "done", **asdict(result)}
        self.run.append_log(done)
        if report:
            from .report import write  # imports matplotlib, which is only needed here

            write(self.run.path)
        self.listen(done)
        return result

    def _say(self, event: str, **fields: Any) -> None:
        self.listen({"event": event, **fields})

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        self._read()
        for name, value in self.network.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise RunError(
                    f"{name} became NaN or infinite in epoch {self.epoch}; lower --optimizer.lr ({self.recipe.optimizer.lr}) "
                    "or set --clip 1 (the last checkpoint is intact)"
                )
        state = {
            "version": CHECKPOINT_VERSION,
            "recipe": self.recipe.to_dict(),
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "products": product.state(self.network),
            "potential": None if self.potential is None else self.potential.state_dict(),
            "generators": _generators(),
            "position": [self.epoch, self.batch, self.step],
            "sums": [self.loss_sum, self.right, self.seen],
            "best": self.best,
            "bad_epochs": self.bad_epochs,
            "elapsed": [self.elapsed, self.epoch_seconds],
            "log_size": self.run.log_size(),
        }
        self.run.write("last.ckpt", _packed(state))

    def restore(self) -> None:
        state = _unpacked(self.run, "last.ckpt")
        if state.get("version") != CHECKPOINT_VERSION:
            raise RunError(f"{self.run.path / 'last.ckpt'} is of another version of backspike; resume it with that one")
        if state["recipe"] != self.recipe.to_dict():
            raise RunError(
                f"{self.run.path}: last.ckpt is of another recipe than recipe.json; restore the one that belongs to it"
            )
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            product.load(self.network, state["products"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            if self.potential is not None:
                self.potential.load_state_dict(state["potential"])
        except (RuntimeError, ValueError, KeyError, AttributeError) as e:
            text = str(e).splitlines()[0]
            raise RunError(
                f"{self.run.path / 'last.ckpt'} does not fit this network ({text}); give fit's own model= again"
            ) from e
        self.epoch, self.batch, self.step = state["position"]
        *sums, self.seen = state["sums"]
        self.sums[:2] = torch.tensor(sums, dtype=torch.float64)
        self.best, self.bad_epochs = state["best"], state["bad_epochs"]
        self.elapsed, self.epoch_seconds = state["elapsed"]
        self.run.cut_log(state["log_size"])
        _set_generators(state["generators"])

    def _environment(self) -> dict[str, Any]:
        return {
            "backspike": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "command": _command(self.recipe, self.own),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "data_note": self.sets.note,
            "data_credit": self.sets.credit,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            **{f"{name}_because": why for name, why in self.reasons.items()},
        }


def _command(recipe: Recipe, own: list[str]) -> str:
    """What repeats the run: the command line that was given, or the call of `fit` with the recipe written out."""
    if Path(sys.argv[0]).stem in ("backspike", "__main__"):
        return shlex.join(["backspike", *sys.argv[1:]])
    given = {"model": "model=...", "data": "train=..., test=..."}
    return ", ".join([f"bs.fit({recipe!r}", "out", *(given[o] for o in own)]) + ")"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return (
            f"{next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))}, {os.cpu_count()} cores"
        )
    except (OSError, StopIteration):
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _to_channels_last(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weights; and what neurons learn in a group of its own, at a tenth of the learning rate and without weight decay."""
    own = neuron_parameters(model)
    ids = {id(p) for p in own}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups: list[dict[str, Any]] = [{"params": weights, "lr_scale": 1.0}]
    if own:
        groups.append({"params": own, "lr_scale": 0.1, "weight_decay": 0.0})
    return groups


def _on_device(group: dict[str, Any], device: torch.device) -> Tensor:
    """The learning rate of a group of parameters as a tensor, so that a recorded step reads what it is now."""
    if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = True
    return group["lr"]


@torch.no_grad()
def _average(averaged: Network, network: Network, decay: float) -> None:
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values()))
    numbers = [(a, b) for a, b in pairs if a.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in numbers], [b for _, b in numbers], 1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


@torch.no_grad()
def _test(network: Network, batches: Batches, recipe: Recipe) -> tuple[float, float]:
    """(accuracy, loss) over a data set."""
    network.eval()
    sums, n = torch.zeros(2, dtype=torch.float64, device=batches.device), 0
    for x, y in batches.in_order():
        with batches.autocast():
            o = network.model(x).float()
        logits = network.readout(o)
        sums[0] += (logits.argmax(-1) == y).sum()
        sums[1] += recipe.loss.value(o, logits, y).double() * len(y)
        n += len(y)
    right, loss = sums.tolist()
    return right / n, loss / n


def _packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpacked(run: Run, name: str) -> dict[str, Any]:
    """Reads a checkpoint: tensors and plain values only, its checksums verified."""
    packed = run.read(name)
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if (torn := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{torn} fails its checksum")
        return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as e:
        raise RunError(f"{run.path / name} is damaged ({str(e).splitlines()[0]}); start the run anew with --force") from e


def _generators() -> dict[str, Any]:
    version, state, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (what a user's data set may draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(state), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def _set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
