"""Training: `fit` runs a recipe into a run folder; `resume` goes on after any stop; `evaluate` and `load` use what is there.

A resumed run equals the uninterrupted one bit for bit on the same machine: the checkpoint holds the weights, the optimizer,
the averaged weights, the readout with its counts, which way products take (dense or sparse), every generator's state, the
position in the epoch and the log so far; the checkpoint before it stays beside it. The choice of the best epoch is made on the
validation split, never on the test set. Under torchrun several ranks do this together (distributed.py), each on its share of
every batch; rank 0 alone writes the folder.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ..analysis import activity, vitals
from ..analysis.diagnosis import diagnose
from ..data.batches import Batches, reader_died
from ..errors import RecipeError, RunError
from ..layers import sparsity
from ..layers.norm import synced
from ..methods.weight_mask import mask_weight_gradients
from ..neuron.hooks import spiking_layers
from ..neuron.lif import check_gradients, neuron_parameters
from ..readout import TWO
from ..recipes.recipe import Recipe
from ..run import Run
from ..surrogate import Masked
from ..system import distributed
from ..system.events import Listener
from ..system.heap import release_heap
from ..system.machine import processor_name
from ..version import __version__
from .checkpoint import (
    CHECKPOINT_VERSION,
    FUSED,
    checked_numbers,
    read,
    rng_state,
    set_rng_state,
    to_bytes,
)
from .cuda_graph import Replayed
from .environment import command
from .evaluate import measure_test, test_network
from .events import WATCHED
from .failures import first_line, logger, out_of_memory
from .interrupt import StopRequest, stop_on_signal
from .network import Network, to_channels_last
from .nonfinite import origin
from .precision import choose
from .schedule import parameter_groups, rate_on_device, update_average
from .setup import OwnData, choose_device, load_data
from .step import READ_EVERY


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


def rehearse(recipe: Recipe, steps: int, device: str | None = None) -> tuple[list[float], bool]:
    """A run in short that leaves nothing behind: the seconds of each step, and whether there is BatchNorm."""
    with TemporaryDirectory() as folder:
        run = Run.free(Path(folder) / "run")
        training = Trainer(run, recipe, None, load_data(recipe), device, None)
        with run.created(training.recipe):
            seconds = training.rehearse(steps)
    return seconds, any(
        isinstance(m, nn.modules.batchnorm._BatchNorm) for m in training.network.modules()
    )


class Trainer:
    """A run in progress: what `fit` builds, a checkpoint holds and `resume` restores."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        model: nn.Module | None,
        sets: Any,
        device: str | torch.device | None,
        listen: Listener | None,
        watch: bool = False,
    ) -> None:
        self.run, self.recipe, self.device, self.ranks = (
            run,
            recipe,
            choose_device(device),
            distributed.here(),
        )
        self.listen = listen if listen and self.ranks.first else (lambda event: None)
        torch.manual_seed(recipe.seed)
        try:
            network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
            if recipe.sync_norm and self.ranks.size > 1:
                synced(network)
            self.network = network.to(self.device)
            self.ranks.alike(self.network)
        except (ValueError, TypeError, RuntimeError) as e:
            raise RunError(f"the recipe cannot be built: {first_line(e)}") from e
        self.train, self.validation, self.test = (
            None if d is None else Batches(d, recipe, self.device)
            for d in (sets.train, sets.validation, sets.test)
        )
        self.sets = sets
        self.own = ["model"] * (model is not None) + ["data"] * isinstance(sets, OwnData)
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
        self.watch = watch
        self.watched: list[vitals.Batch] = []  # the same samples after every epoch
        self.elapsed, self.epoch_seconds = 0.0, 0.0
        self._choose(self._checked_sample())
        self._check_shares()
        recipe = self.recipe
        try:
            self.averaged = copy.deepcopy(self.network) if recipe.ema else None
            self.optimizer = recipe.optimizer.build(parameter_groups(self.network.model, recipe))
            self.neurons_learn = bool(neuron_parameters(self.network.model))
        except (ValueError, TypeError, RuntimeError) as e:
            raise RunError(f"the recipe cannot be built: {first_line(e)}") from e
        # the parts that hook into the model; a copy of it, the averaged one, is left alone
        try:
            self.potential = (
                recipe.potential.build(self.network.model) if recipe.potential else None
            )
            self.scaling = recipe.scaling.build(self.network.model) if recipe.scaling else None
        except ValueError as e:
            raise RunError(f"the recipe cannot be built: {first_line(e)}") from e
        if recipe.patience and self.validation is None:
            raise RunError(
                "patience counts epochs without a better validation accuracy; give validation=, or patience=0"
            )
        self.weight_mask = (
            mask_weight_gradients(self.network.model, recipe.weight_mask)
            if recipe.weight_mask
            else None
        )
        self.parallel = self.ranks.parallel(self.network.model)
        self._draw_apart()
        self.replayed = (
            Replayed(self.compute_step, self.device, self._not_recorded)
            if self._records()
            else None
        )

    @property
    def evaluated(self) -> Network:
        """The network whose accuracy counts and whose weights are saved."""
        return self.averaged or self.network

    def _choose(self, x: Tensor) -> None:
        """What the recipe leaves open: precision and memory layout."""
        chosen = self.ranks.of_first(lambda: choose(self.recipe, self.network.model, x))
        self.recipe, self.reasons = chosen.recipe, chosen.reasons
        for batches in filter(None, (self.train, self.validation, self.test)):
            batches.recipe = self.recipe
        if self.recipe.channels_last:
            to_channels_last(self.network)

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
        if why and self.device.type == "cuda":
            logger.info("steps are not recorded as a CUDA graph: it %s", why)
        return why is None

    def _not_recorded(self, why: str) -> None:
        if self.recipe.cuda_graph:
            raise RunError(
                f"--cuda_graph: this step cannot be recorded ({why}); set --cuda_graph False"
            )
        self._say(
            "cuda_graph",
            text=f"steps are launched one kernel after the other, as they cannot be recorded: {why}",
        )

    def _checked_sample(self) -> Tensor:
        """One sample `[T, 1, ...]` that went through the network, so that a wrong shape is said before anything is trained."""
        assert self.train is not None
        try:
            x, y = self.train.take(torch.zeros(1, dtype=torch.int64))
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as e:
            raise RunError(
                f"the first sample of the training data cannot be read: {first_line(e)}"
            ) from e
        self.network.eval()
        try:
            with torch.no_grad(), self.train.autocast():
                o = self.network.model(x)
        except (RuntimeError, ValueError, TypeError) as e:
            text = first_line(e)
            raise RunError(
                f"the model does not take this data, a batch of shape {list(x.shape)} [T, B, ...]: {text}"
            ) from e
        if o.dim() != 3 or o.shape[:2] != x.shape[:2]:
            raise RunError(
                f"the model must give outputs over time [T, B, K]; it gave {list(o.shape)} for {list(x.shape)}"
            )
        K = o.shape[2]
        needed = self.sets.num_classes or int(y.max()) + 1
        if needed > K:
            raise RunError(
                f"the model has {K} outputs and the data {needed} classes; set num_classes={needed}"
            )
        for batches in filter(None, (self.train, self.validation, self.test)):
            batches.expect_classes(K)
        return x

    def _check_shares(self) -> None:
        """Every rank has something to do in every step."""
        assert self.train is not None
        for number in {0, len(self.train) - 1}:
            if (fewest := min(self.train.parts(number))) < self.ranks.size:
                raise RunError(
                    f"batch {number} of an epoch comes in parts of {fewest} samples, too few for {self.ranks.size} ranks; "
                    f"change --batch_size ({self.recipe.batch_size}), --accumulate ({self.recipe.accumulate}) or --limit"
                )

    def _draw_apart(self) -> None:
        """Ranks draw different numbers for their samples; rank 0 those of a single process."""
        if not self.ranks.first:
            mixed = np.random.SeedSequence(
                (self.recipe.seed, self.ranks.rank, self.step)
            ).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed[0]))

    # ---- the story -------------------------------------------------------------------------------------------------

    def run_to_the_end(self, report: bool = True) -> Result:
        with self._together():
            return self._run_to_the_end(report)

    def _run_to_the_end(self, report: bool) -> Result:
        watched = None if self.ranks.of_first(lambda: self.run.has("last.ckpt")) else self._begin()
        start = {
            "run": str(self.run.path),
            "recipe": self.recipe.to_dict(),
            "epochs": self.recipe.epochs,
            "epoch": self.epoch,
        }
        self._say("start", **start, chosen=self.reasons, ranks=self.ranks.size)
        if watched:
            self.listen(watched)
        with stop_on_signal() as asked:
            while self.epoch < self.recipe.epochs and not self._out_of_patience():
                self._train_epoch(asked)
                self._end_epoch()
        return self._finish(report)

    def _begin(self) -> dict[str, Any] | None:
        """Writes what a run starts with; what is watched before training, if it is."""
        if self.ranks.first:
            self.run.write_json("env.json", self._environment())
            x = self._probed()
            assert self.train is not None
            with self.train.autocast():
                histograms = activity.histograms(self.network.model, x)
                probed = activity.probe(self.network.model, x)
            self.run.append_log({"event": "initial", "membrane_counts": histograms, **probed})
        watched = self._watch()
        self.save()
        release_heap()
        return watched

    def rehearse(self, steps: int) -> list[float]:
        """All that a run does, each a little; the seconds of every step."""
        assert self.train is not None
        with self.step_errors():
            self._begin()
            seconds: list[float] = []
            for x, y in islice(chain.from_iterable(map(self.train.training, count())), steps):
                self.batch = len(seconds) % len(self.train)
                started = time.monotonic()
                self.train_step(x, y)
                self._read()
                seconds.append(time.monotonic() - started)
            self.validation, self.test = (
                b.first_part() if b else None for b in (self.validation, self.test)
            )
            self._end_epoch()
            self._finish(report=True)
        return seconds

    def _train_epoch(self, asked: StopRequest) -> None:
        assert self.train is not None
        self.set_mask_probability()
        if 0 < self.recipe.freeze_width <= self.epoch:
            learning = [p for p in neuron_parameters(self.network.model) if p.requires_grad]
            for parameter in learning:
                parameter.requires_grad_(False)
            if learning and self.replayed:
                self.replayed.forget()
        started = saved = time.monotonic()
        before = self.epoch_seconds
        batches = len(self.train)
        with self.step_errors():
            for x, y in self.train.training(self.epoch, self.batch, self.ranks):
                self.train_step(x, y)
                if self.scaling is not None and not self.scaling_said:
                    self._say(
                        "scaling", scaled=self.scaling.scaled, not_scaled=self.scaling.not_scaled
                    )
                    self.scaling_said = True
                self.batch += 1
                now = time.monotonic()
                self.epoch_seconds = before + now - started
                rate, at = (
                    self.seen / max(self.epoch_seconds, 1e-9),
                    {"epoch": self.epoch, "batch": self.batch},
                )
                self._say("batch", **at, batches=batches, loss=self.loss, samples_per_second=rate)
                due = self.ranks.first and now - saved >= self.recipe.checkpoint_seconds
                stop, due = map(bool, self.ranks.sums(asked.yes, due))  # all at the same step
                if stop:
                    self.save()
                    raise KeyboardInterrupt
                if due:
                    self.save()
                    saved = now
            self._read()  # what is still queued on a GPU belongs to the epoch's time
            self.epoch_seconds = before + time.monotonic() - started

    @contextmanager
    def step_errors(self) -> Iterator[None]:
        """What goes wrong in a step, in one line; the last checkpoint stands."""
        try:
            yield
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError) as e:
            if out_of_memory(e) or reader_died(e) or distributed.lost(e):
                raise
            raise RunError(f"epoch {self.epoch}, batch {self.batch}: {first_line(e)}") from e

    @contextmanager
    def _together(self) -> Iterator[None]:
        """The end of another rank, in one line."""
        try:
            yield
        except RuntimeError as e:
            if not distributed.lost(e):
                raise
            again = distributed.command("resume", self.run.path)
            raise RunError(
                f"another rank ended in epoch {self.epoch}; go on from the last checkpoint with: {again}"
            ) from e

    def train_step(self, x: Tensor, y: Tensor) -> None:
        """One step on batch number `self.batch`, of which x and y are this rank's share."""
        recipe, network = self.recipe, self.network
        assert self.train is not None
        if not network.model.training:
            network.train()
        lr = self._learning_rate()
        for group in self.optimizer.param_groups:
            rate = lr * group["lr_scale"]
            if (
                self.replayed or self.device.type == "cuda"
            ):  # as one number or the other, optimizers round differently
                rate_on_device(group, self.device).fill_(rate)
            else:
                group["lr"] = rate
        (self.replayed or self.compute_step)(x, y)
        self.step += 1
        self.seen += sum(self.train.parts(self.batch))
        if self.waits or self.step % READ_EVERY == 0:
            self._read()
        if self.averaged is not None:
            # a young average forgets faster, or it would long hold the weights of the start
            update_average(self.averaged, network, min(recipe.ema, self.step / (self.step + 9)))

    def compute_step(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward and the optimizer's step. All that changes lies in tensors and nothing waits for the device, so
        that it can be recorded."""
        recipe, network = self.recipe, self.network
        assert self.train is not None
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        parts = self.train.parts(self.batch)
        shares = [self.ranks.share(samples) for samples in parts]
        for number, (part_x, part_y) in enumerate(zip(x.split(shares, dim=1), y.split(shares)), 1):
            with distributed.apart(self.parallel) if number < len(parts) else nullcontext():
                with self.train.autocast():
                    o = self.parallel(part_x).float()
                logits = network.readout(o)
                loss = recipe.loss.value(o, logits, part_y)
                if self.potential is not None:
                    loss = loss + self.potential.loss()
                # of the gradients of all ranks the mean is taken
                loss = loss * (len(part_y) * self.ranks.size / sum(parts))
                loss.backward()
            total += loss.detach() / self.ranks.size
            right += self._observe(o.detach(), logits.detach(), part_y)
        total, right = self.ranks.sums(total, right)
        parameters = [p for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.sums[0] += total * sum(parts)
        self.sums[1] += right
        self.sums[2] += norm
        if self.waits:
            self._check(x)
        if self.neurons_learn:
            check_gradients(network.model)
        if recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, recipe.clip, norm)
        self.optimizer.step()

    def _diverged(self, what: str) -> RunError:
        lr = self.recipe.optimizer.lr
        return RunError(
            f"{what}; start anew with a lower --optimizer.lr ({lr}) or with --clip 1 (the last checkpoint is intact)"
        )

    def _observe(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """How many answers are right; the readout learns from them."""
        y = y.argmax(-1) if y.dim() == 2 else y  # of a mixed sample the larger share counts
        if isinstance(self.network.readout, TWO):
            self.network.readout.observe(o, y)
        return (logits.argmax(-1) == y).sum()

    def _read(self) -> None:
        """Waits for the device and takes from it what came out of the steps so far."""
        self.loss_sum, self.right = self._check()
        if self.seen:
            self.loss = self.loss_sum / self.seen

    def _check(self, x: Tensor | None = None) -> tuple[float, int]:
        """The sums of losses and of right answers, if the losses and gradients were finite; x: the input of the last step."""
        losses, right, norms = self.sums.tolist()
        if math.isfinite(losses) and math.isfinite(norms):
            return losses, int(right)
        what, value = ("gradient", norms) if math.isfinite(losses) else ("loss", losses)
        if x is None:
            first = max(self.batch - READ_EVERY + 1, 0)
            raise self._diverged(
                f"the {what} became {value} in epoch {self.epoch}, batch {first} to {self.batch}"
            )
        assert self.train is not None
        with self.train.autocast():
            where = origin(self.network.model, x)
        raise self._diverged(
            f"the {what} became {value} in epoch {self.epoch}, batch {self.batch}: {where}"
        )

    def _learning_rate(self) -> float:
        assert self.train is not None
        recipe, per_epoch = self.recipe, len(self.train)
        warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
        if self.step < warmup:
            return recipe.optimizer.lr * (self.step + 1) / (warmup + 1)
        if recipe.schedule == "constant":
            return recipe.optimizer.lr
        return (
            recipe.optimizer.lr
            * 0.5
            * (1 + math.cos(math.pi * (self.step - warmup) / max(total - warmup, 1)))
        )

    def set_mask_probability(self) -> None:
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
        self._check_weights()
        readout = self.network.readout
        if isinstance(readout, TWO):
            readout.end_epoch()
            if self.averaged is not None:
                self.averaged.readout.load_state_dict(readout.state_dict())
        self.ranks.alike(self.evaluated)  # running statistics may differ
        started = time.monotonic()
        release_heap()  # what training took in pieces of its sizes, a test takes in others
        event = self._epoch_event()
        accuracy, loss = event["validation_accuracy"], event["validation_loss"]
        score = (accuracy, -loss) if accuracy is not None else (self.epoch, 0.0)
        if self.best is None or score >= tuple(self.best["score"]):
            self.best = {"score": list(score), "epoch": self.epoch, "accuracy": accuracy}
            self._write("best.ckpt", {"network": self.evaluated.state_dict(), "epoch": self.epoch})
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        self.elapsed += self.epoch_seconds + time.monotonic() - started
        self.run.append_log(event)
        self.epoch += 1
        self.batch, self.seen, self.epoch_seconds = 0, 0, 0.0
        self.sums.zero_()
        watched = self._watch()
        self.save()
        release_heap()
        self.listen(event)
        if watched:
            self.listen(watched)

    def _epoch_event(self) -> dict[str, Any]:
        accuracy, loss = self._tested(self.validation)
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
            "widths": activity.widths(self.network.model),
        }
        if not self.ranks.first:
            return event
        assert self.train is not None
        with self.train.autocast():
            return event | activity.probe(self.network.model, self._probed())

    def _tested(self, batches: Batches | None) -> tuple[float, float] | tuple[None, None]:
        return test_network(self.evaluated, batches, self.recipe) if batches else (None, None)

    def _probed(self) -> Tensor:
        """The batch on which layers are measured."""
        batches = self.validation or self.train
        assert batches is not None
        return batches.take(
            torch.arange(min(self.recipe.part_size, activity.SAMPLES_AT_ONCE, len(batches.data)))
        )[0]

    def _watch(self) -> dict[str, Any] | None:
        """Logs the vitals of the training as it is now, measured on a copy of it; the generators go on as if nothing were."""
        if not self.watch:
            return None
        assert self.train is not None
        generators = rng_state(self.device)
        if not self.watched:
            size = min(activity.SAMPLES_AT_ONCE, self.recipe.part_size)
            self.watched = [
                self.train.take(part) for part in self.train.order(0)[:WATCHED].split(size)
            ]
        seen = vitals.take(
            self.network, self.optimizer, self.watched, self.recipe, self.train.autocast
        )
        set_rng_state(generators, self.device)
        steps = self.recipe.epochs * len(self.train)
        found = diagnose(seen, self.network.model, self.recipe, steps, trained=self.step > 0)
        event = {
            "event": "watch",
            "epochs": self.epoch,
            "vitals": seen.to_dict(),
            "findings": [f.to_dict() for f in found],
        }
        self.run.append_log(event)
        return event

    def _out_of_patience(self) -> bool:
        return 0 < self.recipe.patience <= self.bad_epochs

    def _finish(self, report: bool) -> Result:
        """Tests the last and the best epoch, leaves weights, measurements, log and report."""
        accuracy = last = self._tested(self.test)[0]
        assert self.best is not None
        final = self.evaluated
        if self.best["epoch"] != self.epoch - 1:
            try:
                final.load_state_dict(
                    self.ranks.of_first(lambda: read(self.run, "best.ckpt")["network"])
                )
            except (RuntimeError, KeyError, TypeError, AttributeError) as e:
                if distributed.lost(e):
                    raise
                raise RunError(
                    f"{self.run.path / 'best.ckpt'} is damaged ({first_line(e)}); restore it"
                ) from e
            accuracy = self._tested(self.test)[0]
        state = {k: v.contiguous() for k, v in final.state_dict().items()}
        self.run.write(
            "model.safetensors", save_safetensors(state, metadata={"backspike": __version__})
        )
        if self.test is not None and self.ranks.first:
            measure_test(self.run, final, self.test)
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
        if report and self.ranks.first:
            from ..report import write  # imports matplotlib, which is only needed here

            write(self.run.path)
        self.listen(done)
        return result

    def _say(self, event: str, **fields: Any) -> None:
        self.listen({"event": event, **fields})

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        """Before they replace good ones in a file."""
        for name, value in self.network.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(
                    f"{name} became NaN or infinite in epoch {self.epoch}, before batch {self.batch}"
                )

    def save(self) -> None:
        self._read()
        self._check_weights()
        state = {
            "version": CHECKPOINT_VERSION,
            "recipe": self.recipe.to_dict(),
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": {
                "state": self.optimizer.state_dict()["state"]
            },  # its groups are those of the recipe
            "potential": None if self.potential is None else self.potential.state_dict(),
            "ranks": self.ranks.gathered(
                {"generators": rng_state(self.device), "products": sparsity.state(self.network)}
            ),
            "position": [self.epoch, self.batch, self.step],
            "sums": [self.loss_sum, self.right, self.seen],
            "best": self.best,
            "bad_epochs": self.bad_epochs,
            "elapsed": [self.elapsed, self.epoch_seconds],
            "log": self.run.logged,
        }
        if self.ranks.first:
            self.run.keep("last.ckpt", "previous.ckpt")
        self._write("last.ckpt", state)

    def _write(self, name: str, state: dict[str, Any]) -> None:
        if self.ranks.first:
            self.run.write(name, to_bytes(state))

    def restore(self) -> None:
        """From the checkpoint; with another number of ranks than it was made by, samples and masks are drawn anew."""
        state = self.ranks.of_first(self._last_checkpoint)
        if state.get("version") != CHECKPOINT_VERSION:
            raise RunError(
                f"{self.run.path / 'last.ckpt'} is of another version of backspike; resume it with that one"
            )
        if not self._is_of_this_recipe(state.get("recipe")):
            raise RunError(
                f"{self.run.path}: last.ckpt is of another recipe than recipe.json; restore the one that belongs to it"
            )
        try:
            self._take(state)
        except Exception as e:  # whatever a damaged checkpoint makes of it
            raise RunError(
                f"{self.run.path / 'last.ckpt'} does not fit this network ({first_line(e)}); give fit's own model= again"
            ) from e
        if self.best is not None:
            self.ranks.of_first(
                lambda: read(self.run, "best.ckpt")
            )  # damage is said now, not after hours of training
        self.run.put_back_log(state["log"])

    def _take(self, state: dict[str, Any]) -> None:
        """The state of a checkpoint, which may be anybody's: what has no checks of its own is checked here."""
        self.network.load_state_dict(state["network"])
        self.take_optimizer(state["optimizer"])
        own = state["ranks"][self.ranks.rank if len(state["ranks"]) == self.ranks.size else 0]
        sparsity.load(self.network, own["products"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if self.potential is not None:
            self.potential.load_state_dict(state["potential"])
        self.epoch, self.batch, self.step = checked_numbers(state["position"], int, int, int)
        *sums, self.seen = checked_numbers(state["sums"], float, int, int)
        self.sums[:2] = torch.tensor(sums, dtype=torch.float64)
        self.best, (self.bad_epochs,) = state["best"], checked_numbers([state["bad_epochs"]], int)
        self.elapsed, self.epoch_seconds = checked_numbers(state["elapsed"], float, float)
        if self.best is not None:
            accuracy = [a for a in [self.best["accuracy"]] if a is not None]
            checked_numbers(
                [*self.best["score"], self.best["epoch"], *accuracy],
                float,
                float,
                int,
                *([float] * len(accuracy)),
            )
        if (
            (self.best is None) != (self.epoch == 0)
            or self.epoch > self.recipe.epochs
            or (self.batch > 0) != (self.seen > 0)
        ):
            raise ValueError(f"epoch {self.epoch}, batch {self.batch}, best {self.best}")
        if not isinstance(state["log"], str):
            raise ValueError(f"its log is a {type(state['log']).__name__}")
        set_rng_state(own["generators"], self.device)
        if len(state["ranks"]) != self.ranks.size:
            self._draw_apart()

    def _is_of_this_recipe(self, stored: Any) -> bool:
        """Whether a checkpoint's recipe is this one; fields that an older version did not know have their defaults."""
        wanted = self.recipe.to_dict()
        if stored == wanted:
            return True
        try:
            return Recipe.from_dict(stored).to_dict() == wanted
        except (
            RecipeError,
            TypeError,
            AttributeError,
            KeyError,
        ):  # damage, or values of the user's own
            return False

    def take_optimizer(self, state: dict[str, Any]) -> None:
        """The optimizer's part of a checkpoint. The groups are the recipe's: only their rate changes, at every step."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict(
            {"state": self._moments(state["state"]), "param_groups": groups}
        )

    def _moments(self, stored: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """The state of torch's fused optimizers, which write past a tensor of the wrong size without a check: a copy in
        tensors like the parameters. Of other optimizers as it is."""
        names = FUSED.get(type(self.optimizer))
        if names is None:
            return stored
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        out: dict[int, dict[str, Any]] = {}
        for i, values in stored.items():
            if values and set(values) != names:
                raise ValueError(
                    f"the optimizer keeps {', '.join(sorted(names))}, not {', '.join(map(str, values))}"
                )
            wanted = {
                name: torch.tensor(0.0) if name == "step" else parameters[i].detach()
                for name in values
            }
            if any(v.shape != wanted[name].shape for name, v in values.items()):
                raise ValueError(f"the optimizer's state of parameter {i} has another shape")
            out[i] = {name: torch.empty_like(wanted[name]).copy_(v) for name, v in values.items()}
        return out

    def _last_checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, or, where it is damaged, the one before, which then takes its place."""
        try:
            return read(self.run, "last.ckpt")
        except RunError as damaged:
            try:
                state = read(self.run, "previous.ckpt")
            except RunError:
                raise damaged from None
            epoch, batch, _ = state["position"]
            path = self.run.path / "last.ckpt"
            logger.warning(
                "%s is damaged: going on from the one before, epoch %d, batch %d",
                path,
                epoch,
                batch,
            )
            self.run.write("last.ckpt", self.run.read("previous.ckpt"))
            return state

    def _environment(self) -> dict[str, Any]:
        return {
            "backspike": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu": processor_name(),
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.size,
            "device": torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else "cpu",
            "command": command(self.recipe, self.own),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "data_note": self.sets.note,
            "data_credit": self.sets.credit,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            **{f"{name}_because": why for name, why in self.reasons.items()},
        }
