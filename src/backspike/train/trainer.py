"""`Trainer`: the epochs of a run, its checkpoints and its end.

On the same machine, a resumed run is bit-identical to an uninterrupted one. The checkpoint
therefore contains the weights, the averaged weights, the optimizer, the readout with its counts,
the sparsity plan, the state of every random generator, the position in the epoch and the log. The
best epoch is chosen on the validation split, never on the test set. Under torchrun, each rank
trains on its share of every batch, and only rank 0 writes to the folder.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from ..errors import RunError, option
from ..layers import sparsity
from ..recipes.recipe import Recipe
from ..run import Run
from ..system import distributed
from ..system.events import Listener
from ..system.heap import release_heap
from ..version import __version__
from . import checkpoint, events
from .checkpoint import Progress
from .environment import environment
from .evaluate import accuracy_and_loss, measure_test
from .failures import first_line, logger, step_errors
from .interrupt import StopRequest, stop_on_signal
from .network import mismatch
from .schedule import anneal_delays, mask_probability, set_mask_probability
from .setup import Setup, seed_rank, set_up
from .step import Step


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run; accuracies lie in [0, 1].

    `test_accuracy` belongs to the epoch with the best validation accuracy; without a validation
    set, to the last epoch.
    """

    run: str
    test_accuracy: float | None
    test_accuracy_last: float | None
    validation_accuracy: float | None
    best_epoch: int | None
    epochs: int
    seconds: float

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Loss, accuracies, learning rate and seconds as arrays `[epochs]`, read from the log.

        NaN where a value does not exist, as without a validation set.
        """
        log = [e for e in Run.open(self.run).log() if e["event"] == "epoch"]
        return {name: np.array([e.get(name) for e in log], float) for name in _HISTORY}

    def __repr__(self) -> str:
        chosen = "the last" if self.validation_accuracy is None else "best by validation"
        best = "no epoch"
        if self.best_epoch is not None:  # it counts from 0
            best = f"epoch {self.best_epoch + 1} of {self.epochs} ({chosen})"
        parts = [
            f"run {self.run!r}",
            f"test accuracy {_percent(self.test_accuracy)}",
            best,
            f"{self.seconds:.1f} s",
        ]
        return f"Result({', '.join(parts)})"

    def _repr_html_(self) -> str:
        """This line and the last ten epochs as a table, which notebooks show."""
        history = self.history
        names = [name for name, values in history.items() if not np.isnan(values).all()]
        rows = list(zip(*(history[name] for name in names)))
        shown = range(max(0, len(rows) - 10), len(rows))
        cells = "".join(
            f"<tr><td>{epoch + 1}</td>{''.join(f'<td>{v:.4g}</td>' for v in rows[epoch])}</tr>"
            for epoch in shown
        )
        head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
        return (
            f"<p>{html.escape(repr(self))}</p><table><tr><th>epoch</th>{head}</tr>{cells}</table>"
        )


_HISTORY = (
    "loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "lr",
    "seconds",
)


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.2f} %"


def rehearse(
    recipe: Recipe, steps: int, device: str | None = None, **own: Any
) -> tuple[list[float], bool]:
    """Makes a short run and deletes it; the seconds of each step, and whether it has BatchNorm.

    own: the user's own model and data, as for `fit`.
    """
    setup = set_up(recipe, device=device, try_step=True, **own)
    setup = replace(
        setup,
        validation=setup.validation and setup.validation.first_part(),
        test=setup.test and setup.test.first_part(),
    )
    with TemporaryDirectory() as folder:
        run = Run.free(Path(folder) / "run")
        with run.created(setup.recipe):
            seconds = Trainer(run, setup).rehearse(steps)
    norms = nn.modules.batchnorm._BatchNorm
    return seconds, any(isinstance(m, norms) for m in setup.network.modules())


class Trainer:
    """A run in progress."""

    def __init__(
        self, run: Run, setup: Setup, listen: Listener | None = None, watch: bool = False
    ) -> None:
        self.run = run
        self.setup = setup
        self.ranks = setup.ranks
        self.listen = listen if listen and self.ranks.first else (lambda event: None)
        self.unheard = listen is None
        self.weights = setup.weights if self.ranks.first else None
        self.watch = events.Watch(setup) if watch else None
        self.silent: list[str] = []  # layers without a spike before training
        self.untrained_loss: float | None = None  # on rank 0
        self.progress = Progress()
        self.step = Step(setup, self.progress, self._not_recorded)

    def train(self, report: bool = True) -> Result:
        """Trains from the current position to the end."""
        recipe, progress = self.setup.recipe, self.progress
        with self._lost_rank():
            begun = self.ranks.on_rank0(lambda: self.run.has("last.ckpt"))
            watched = None if begun else self._begin()
            log = self.run.log() if self.ranks.first else []
            self.silent = self.ranks.on_rank0(lambda: events.silent_layers(log))
            self.untrained_loss = events.untrained_loss(self.setup, log)
            self._say(
                "start",
                run=str(self.run.path),
                recipe=self.setup.describe(),
                epochs=recipe.epochs,
                epoch=progress.epoch,
                chosen=self.setup.reasons,
                ranks=self.ranks.size,
            )
            for begun_with in (self.weights, watched):
                if begun_with:
                    self.listen(begun_with)
            if not begun and self.ranks.first:
                self._warn(events.one_step(self.setup))
            with stop_on_signal() as stop:
                while progress.epoch < recipe.epochs and not self._out_of_patience():
                    self._train_epoch(stop)
                    self._end_epoch()
            return self._finish(report)

    def rehearse(self, steps: int) -> list[float]:
        """Does everything that a run does, with few steps; returns the seconds of each step."""
        train = self.setup.train
        with step_errors(self.progress):
            self._begin()
            seconds: list[float] = []
            for x, y in islice(chain.from_iterable(map(train.training, count())), steps):
                self.progress.batch = len(seconds) % len(train)
                started = time.monotonic()
                self.step(x, y, train.parts(self.progress.batch))
                self.step.read()
                seconds.append(time.monotonic() - started)
            self._end_epoch()
            self._finish(report=True)
        return seconds

    def _begin(self) -> dict[str, Any] | None:
        """Writes the first files of a run; returns the first `watch` event, if there is one."""
        if self.ranks.first:
            self.run.write_json("env.json", environment(self.setup))
            if self.weights:
                self.run.append_log(self.weights)
            self.run.append_log(events.initial(self.setup))
        watched = self._watch()
        self.save()
        release_heap()
        return watched

    def _train_epoch(self, stop: StopRequest) -> None:
        recipe, train, progress = self.setup.recipe, self.setup.train, self.progress
        for network in (self.setup.network, self.setup.averaged):
            set_mask_probability(network, mask_probability(recipe, progress.epoch))
            anneal_delays(network, recipe, progress.epoch)
        if 0 < recipe.freeze_width <= progress.epoch:
            self.step.freeze_neurons()
        started = saved = time.monotonic()
        before = progress.epoch_seconds
        with step_errors(progress):
            for x, y in train.training(progress.epoch, progress.batch, self.ranks):
                self._train_batch(x, y)
                now = time.monotonic()
                progress.epoch_seconds = before + now - started
                self._say_batch()
                due = self.ranks.first and now - saved >= recipe.checkpoint_seconds
                # all ranks stop and save at the same step
                stopped, due = map(bool, self.ranks.all_reduce(stop.requested, due))
                if stopped or due:
                    self.save()
                    saved = now
                if stopped:
                    raise KeyboardInterrupt
            self.step.read()  # what is still queued on a GPU belongs to the epoch's time
            progress.epoch_seconds = before + time.monotonic() - started

    def _train_batch(self, x: Tensor, y: Tensor) -> None:
        scaling = self.setup.scaling
        untraced = scaling is not None and not scaling.traced
        self.step(x, y, self.setup.train.parts(self.progress.batch))
        if untraced:  # the first forward pass shows which layers are scaled
            self._say("scaling", scaled=scaling.scaled, not_scaled=scaling.not_scaled)
        self.progress.batch += 1
        steps = self.setup.recipe.epochs * len(self.setup.train)
        if self.silent and self.step.number == min(events.SILENT_STEPS, steps):
            # on all ranks, since norms may share their statistics
            event = events.silent(self.setup, self.step, self.silent)
            self._warn(event if self.ranks.first else None)

    def _warn(self, event: dict[str, Any] | None) -> None:
        """Logs and shows an event with a text that says what to do; does nothing for None."""
        if event is not None:
            self.run.append_log(event)
            self._show(event)

    def _show(self, warning: dict[str, Any]) -> None:
        self.listen(warning)
        if self.unheard:
            logger.warning("%s", warning["text"])

    def _end_epoch(self) -> None:
        progress, evaluated = self.progress, self.setup.evaluated
        self.step.end_epoch()
        started = time.monotonic()
        release_heap()  # testing needs other sizes of memory blocks than training
        event = events.epoch(self.setup, self.step, progress)
        held_out = event["validation_loss"]
        with step_errors(progress):
            self.setup.rates.end_epoch(event["loss"] if held_out is None else held_out)
        best = progress.update_best(event["validation_accuracy"], event["validation_loss"])
        if best and self.ranks.first:
            state = {"network": evaluated.state_dict(), "epoch": progress.epoch}
            self.run.write("best.ckpt", checkpoint.to_bytes(state))
        progress.elapsed += progress.epoch_seconds + time.monotonic() - started
        self.run.append_log(event)
        if warning := events.diverged(self.setup, event, self.untrained_loss):
            self.untrained_loss = None  # once is enough
            self.run.append_log(warning)
        progress.begin_epoch()
        self.step.begin_epoch()
        watched = self._watch()
        self.save()
        release_heap()
        self.listen(event)
        if watched:
            self.listen(watched)
        if warning:
            self._show(warning)

    def _watch(self) -> dict[str, Any] | None:
        if self.watch is None:
            return None
        event = self.watch.measure(self.progress, self.step)
        self.run.append_log(event)
        return event

    def _out_of_patience(self) -> bool:
        return 0 < self.setup.recipe.patience <= self.progress.bad_epochs

    def _finish(self, report: bool) -> Result:
        """Tests the last and the best epoch; writes weights, evaluation, log and report."""
        progress, final = self.progress, self.setup.evaluated
        assert progress.best is not None
        accuracy = last = self._test_accuracy()
        if progress.best["epoch"] != progress.epoch - 1:
            self._load_best()
            accuracy = self._test_accuracy()
        weights = {k: v.contiguous() for k, v in final.state_dict().items()}
        packed = save_safetensors(weights, metadata={"backspike": __version__})
        self.run.write("model.safetensors", packed)
        if self.setup.test is not None and self.ranks.first:
            measure_test(self.run, final, self.setup.test)
        result = Result(
            run=str(self.run.path),
            test_accuracy=accuracy,
            test_accuracy_last=last,
            validation_accuracy=progress.best["accuracy"],
            best_epoch=progress.best["epoch"],
            epochs=progress.epoch,
            seconds=round(progress.elapsed, 3),
        )
        done = {"event": "done", **asdict(result)}
        self.run.append_log(done)
        if report and self.ranks.first:
            from ..report import write  # imports matplotlib, which is only needed here

            write(self.run.path)
        self.listen(done)
        return result

    def _test_accuracy(self) -> float | None:
        setup = self.setup
        if setup.test is None:
            return None
        return accuracy_and_loss(setup.evaluated, setup.test, setup.recipe)[0]

    def _load_best(self) -> None:
        try:
            best = self.ranks.on_rank0(lambda: checkpoint.read(self.run, "best.ckpt")["network"])
            self.setup.evaluated.load_state_dict(best)
        except (RuntimeError, KeyError, TypeError, AttributeError) as e:
            if distributed.is_peer_failure(e):
                raise
            raise RunError(
                f"{self.run.path / 'best.ckpt'} is damaged ({first_line(e)}); restore it"
            ) from e

    def _say(self, event: str, **fields: Any) -> None:
        self.listen({"event": event, **fields})

    def _say_batch(self) -> None:
        progress, step = self.progress, self.step
        self._say(
            "batch",
            epoch=progress.epoch,
            batch=progress.batch,
            batches=len(self.setup.train),
            loss=step.loss,
            samples_per_second=step.samples / max(progress.epoch_seconds, 1e-9),
        )

    def _not_recorded(self, why: str) -> None:
        if self.setup.recipe.cuda_graph:
            raise RunError(
                f"{option('cuda_graph')}: this step cannot be recorded ({why}); "
                f"set {option('cuda_graph', False)}"
            )
        text = f"kernels are launched one by one, as this step cannot be recorded: {why}"
        self._say("cuda_graph", text=text)

    @contextmanager
    def _lost_rank(self) -> Iterator[None]:
        """Explains in one line that another rank has ended."""
        try:
            yield
        except RuntimeError as e:
            if not distributed.is_peer_failure(e):
                raise
            again = distributed.command(*self.run.command("resume"))
            raise RunError(
                f"another rank ended in epoch {self.progress.epoch + 1}; "
                f"continue from the last checkpoint with: {again}"
            ) from e

    # ---- checkpoints ---------------------------------------------------------------------------

    def save(self) -> None:
        """Writes last.ckpt and keeps the one before as previous.ckpt."""
        network = self.setup.network
        own = {
            "generators": checkpoint.rng_state(self.setup.device),
            "products": sparsity.state(network),
        }
        step, progress = self.step.state_dict(), self.progress.state_dict()
        state = {
            "version": checkpoint.CHECKPOINT_VERSION,
            "recipe": self.setup.recipe.to_dict(),
            "ranks": self.ranks.gather(own),
            **step,
            **progress,
            "position": [self.progress.epoch, self.progress.batch, self.step.number],
            "log": self.run.logged,
        }
        if self.ranks.first:
            self.run.keep("last.ckpt", "previous.ckpt")
            self.run.write("last.ckpt", checkpoint.to_bytes(state))

    def restore(self) -> None:
        """Loads the checkpoint. A different number of ranks draws other random numbers.

        Raises RunError if it is damaged or belongs to another network.
        """
        path = self.run.path / "last.ckpt"
        state = self.ranks.on_rank0(lambda: checkpoint.read_last(self.run))
        checkpoint.check_recipe(state, self.setup.recipe, path)
        try:
            if difference := mismatch(self.setup.network, state["network"]):
                raise ValueError(difference)
            self._load_state_dict(state)
        except Exception as e:  # a damaged checkpoint can raise almost anything
            needed = "the model= that it was trained with" if self.setup.own else "its own recipe"
            raise RunError(
                f"{path} belongs to another network or is damaged: {first_line(e)}; "
                f"resume it with {needed}"
            ) from e
        if self.progress.best is not None:  # reports damage now, not after hours of training
            self.ranks.on_rank0(lambda: checkpoint.read(self.run, "best.ckpt"))
        self.run.put_back_log(state["log"])

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """A checkpoint is untrusted input: checks what its reader does not check."""
        setup, ranks = self.setup, state["ranks"]
        same_ranks = len(ranks) == self.ranks.size
        own = ranks[self.ranks.rank if same_ranks else 0]
        self.step.load_state_dict(state)
        sparsity.load(setup.network, own["products"])
        self.progress.load_state_dict(state, setup.recipe.epochs)
        if not isinstance(state["log"], str):
            raise ValueError(f"its log is a {type(state['log']).__name__}")
        checkpoint.set_rng_state(own["generators"], setup.device)
        if not same_ranks:
            seed_rank(setup.recipe, self.ranks, self.step.number)
