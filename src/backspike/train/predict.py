"""`Predictor`: the answers of a trained network to new inputs, without labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import data
from ..analysis.activity import answers_over_time
from ..analysis.early_exit import MEASURES, exit_at
from ..data.batches import Batches
from ..data.inputs import inputs as prepare
from ..errors import DataError, RunError
from ..neuron.hooks import Handle, spiking_layers, watch
from ..neuron.lif import Watcher
from ..recipes.recipe import Recipe
from ..run import TRAINED, Run
from .failures import first_line, out_of_memory
from .network import to_channels_last, trained
from .setup import choose_device, data_options

# recipes may train on larger batches
LARGEST_BATCH = 512


@dataclass
class _Item:
    """An input: its name in the result, a sample and its window, or what is wrong with it."""

    input: str | int
    x: np.ndarray | None = None
    span: tuple[int, int] | None = None
    error: str = ""


class Predictor:
    """The trained network of a run, which answers for files and arrays.

    `predictor(inputs)` yields a dict for each input, in order, batch by batch, so that memory does
    not grow with their number:

        for answer in bs.Predictor("runs/digits-1")(["a.png", "folder"]):
            print(answer["input"], answer["name"], answer["probability"])

    Keys: `input` (the path, or the number of an array), `class` (from 0), `name` (of the class),
    `probability` (softmax of the answer), `timesteps` (until the answer; T without early exit),
    `spikes` (of all spiking layers until then, if asked for), `start` and `end` (microseconds, if
    the run cuts recordings into windows, each of which has an answer). An input that cannot be
    read has only `input` and `error`, one line; the others go on.

    inputs: paths (a folder stands for its files), arrays as the data set yields them, or
    `bs.data.Events`; one path is also accepted. Files pass through the preprocessing of the run's
    data set: pictures are scaled to its size, recordings are binned as it bins them.

    Args:
        run: a run folder, `hf://user/name[@revision]`, or the name of a network of the package.
        model, recipe, values: as for `bs.load`.
        read: your own function path -> events, as for `bs.data.recordings`, or path -> sample if
            the run was trained on data of your own.
        exit: "confidence" or "margin": answer at the first timestep at which this reaches the
            threshold that `backspike eval RUN --anytime` chose on the validation split. A number:
            the threshold of the confidence. The network still computes all T timesteps.
        spikes: also count spikes.
        batch_size: inputs computed at once; default: as in the recipe, at most 512.
        device: default: a GPU if there is one.

    Raises RunError or DataError if the run cannot be used.
    """

    def __init__(
        self,
        run: str | Path,
        model: nn.Module | None = None,
        *,
        read: Callable[[Path], Any] | None = None,
        exit: str | float | None = None,
        spikes: bool = False,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        recipe: Recipe | str | None = None,
        values: tuple[Any, ...] = (),
    ) -> None:
        folder = Run.find(run, (*TRAINED, "anytime.json"))
        self.device = choose_device(device)
        _, self.recipe, network = trained(folder, model, recipe=recipe, values=values)
        self.network = network.to(self.device)
        if self.recipe.channels_last:
            to_channels_last(self.network)
        name = self.recipe.data
        own = "data" in folder.own() or not isinstance(name, str)
        source = data.source(name) if isinstance(name, str) and not own else None
        self.inputs = prepare(source, read, **data_options(self.recipe))
        self.classes = folder.classes()
        self.exit = _threshold(folder, exit)
        self.spikes = spikes
        self.windows = not own and self.recipe.window > 0
        self.batch_size = batch_size or min(self.recipe.part_size, LARGEST_BATCH)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of an answer, in order."""
        return (
            *("input", "class", "name", "probability", "timesteps"),
            *("spikes",) * self.spikes,
            *("start", "end") * self.windows,
        )

    def __call__(self, inputs: Iterable[Any] | str | Path) -> Iterator[dict[str, Any]]:
        many = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
        waiting: list[_Item] = []
        kind: tuple[Any, ...] = ()
        for item in self._items(many):
            if item.x is not None:
                samples = sum(waited.x is not None for waited in waiting)
                if samples == self.batch_size or (samples and kind != (item.x.shape, item.x.dtype)):
                    yield from self._answers(waiting)
                    waiting = []
                kind = (item.x.shape, item.x.dtype)
            waiting.append(item)
        yield from self._answers(waiting)

    def _items(self, inputs: Iterable[Any]) -> Iterator[_Item]:
        for number, value in enumerate(inputs):
            if isinstance(value, str | os.PathLike):
                yield from self._files(Path(value))
            else:
                array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
                yield from self._pieces(number, array, f"input {number}")

    def _files(self, path: Path) -> Iterator[_Item]:
        if not path.is_dir():
            yield from self._pieces(str(path), path, str(path))
            return
        found = False
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if self.inputs.accepts(name) and not name.startswith("."):
                    found = True
                    file = Path(folder, name)
                    yield from self._pieces(str(file), file, str(file))
        if not found:
            yield _Item(str(path), error=f"{path}: no files in it that this network could read")

    def _pieces(self, input: str | int, value: Any, name: str) -> Iterator[_Item]:
        try:
            pieces = self.inputs.pieces(value, name)
        except DataError as error:
            text, where = (" ".join(words.split()) for words in (str(error), name))
            yield _Item(input, error=text if where in text else f"{where}: {text}")
            return
        for x, span in pieces:
            yield _Item(input, x, span)

    def _answers(self, items: list[_Item]) -> Iterator[dict[str, Any]]:
        samples = [item.x for item in items if item.x is not None]
        try:
            answers = iter(self._compute(np.stack(samples)) if samples else ())
        except (RuntimeError, ValueError, TypeError, IndexError) as e:
            if out_of_memory(e):
                raise
            shape = list(samples[0].shape)
            problem = f"the network does not take a sample of shape {shape}: {first_line(e)}"
            answers = iter([{"error": problem}] * len(samples))
        for item in items:
            answer: dict[str, Any] = {"input": item.input}
            answer |= {"error": item.error} if item.x is None else next(answers)
            if item.span is not None and "error" not in answer:
                answer["start"], answer["end"] = item.span
            yield answer

    @torch.no_grad()
    def _compute(self, x: np.ndarray) -> list[dict[str, Any]]:
        """The answers to samples [B, ...]."""
        n = len(x)
        split = data.Split(x, np.zeros(n, np.int64), np.arange(n), self.inputs.pixels)
        batches = Batches(split, self.recipe, self.device)
        with batches.autocast(), self._count_spikes() as counts:
            o = self.network.model(batches.take(torch.arange(n))[0]).float()
        steps, every = torch.full((n,), len(o) - 1), torch.arange(n)
        answers = self.network.readout(o).cpu()
        if self.exit is not None:
            measure, threshold = self.exit
            over_time = answers_over_time(o, self.network.readout).cpu()
            steps = exit_at(MEASURES[measure](over_time).double(), threshold)
            answers = over_time[steps, every]
        likely, best = answers.softmax(-1).max(-1)
        spikes = sum(counts).cumsum(0)[steps, every].tolist() if counts else [0] * n
        return [
            {
                "class": k,
                "name": self.classes[k] if k < len(self.classes) else str(k),
                "probability": p,
                "timesteps": t + 1,
                **({"spikes": round(s)} if self.spikes else {}),
            }
            for k, p, t, s in zip(best.tolist(), likely.tolist(), steps.tolist(), spikes)
        ]

    @contextmanager
    def _count_spikes(self) -> Iterator[list[Any]]:
        """Collects, of each spiking layer, the spikes of each timestep and sample, [T, B]."""
        counts: list[Any] = []

        def see(layer: Any, out: Any, _moments: Any) -> None:
            counts.append(out.spikes.flatten(2).sum(2, dtype=torch.float64).cpu())

        with Handle() as handle:
            for layer in spiking_layers(self.network.model).values() if self.spikes else ():
                handle.undo.append(watch(layer, Watcher(see)))
            yield counts


def _threshold(run: Run, exit: str | float | None) -> tuple[str, float] | None:
    """The measure and the threshold of early exit."""
    if exit is None:
        return None
    if not isinstance(exit, str):
        return "confidence", float(exit)
    if exit not in MEASURES:
        raise RunError(f"exit={exit!r}: expected {', '.join(MEASURES)} or a threshold, a number")
    if not run.has("anytime.json"):
        raise RunError(
            f"{run.path} has no thresholds for early exit; measure them with: "
            f"backspike eval {run.path} --anytime; or give a number as the threshold"
        )
    try:
        curve = run.read_json("anytime.json")["exit"][exit]
        return exit, float(curve["threshold"][curve["chosen"]])
    except (KeyError, TypeError, IndexError, ValueError) as e:
        raise RunError(
            f"{run.path / 'anytime.json'} is damaged; write it again with: "
            f"backspike eval {run.path} --anytime"
        ) from e
