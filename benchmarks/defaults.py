"""Which defaults let a first network learn? Neuron options and initial weights on six small tasks.

    python benchmarks/defaults.py --stage screen|final|floors|show [--out FILE]
                                  [--peer-python peers/bin/python]

Every run trains a network without norms in a plain loop, on one thread; its result, the test
accuracy after the last epoch, is appended to the JSON file, and finished runs are skipped when the
script starts again. `screen` changes one option at a time, around the former defaults and around
one combination that learns. `final` compares a few settings with the former defaults, paired over
six seeds. `floors` compares the defaults of the installed version with a ReLU network and with
snnTorch's tutorial 5; snnTorch runs in an environment of its own (`--peer-python`). `show` prints
the tables. The data are looked for in BACKSPIKE_DATA, then in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import backspike as bs

DATA = Path(os.environ.get("BACKSPIKE_DATA") or Path(__file__).parents[2] / "shared" / "data")


@dataclass(frozen=True)
class Setting:
    """Options of every neuron, and how the weights start. The defaults are the former ones."""

    reset_gradient: float = 1.0
    v_threshold: float = 1.0
    decay_input: bool = True
    v_reset: float | None = 0.0
    surrogate: Any = field(default=bs.ATan(alpha=2.0))
    weights: str = "torch"  # or "fluctuation", with xi = 1

    def __str__(self) -> str:
        changed = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return ", ".join(changed) or "former defaults"


@dataclass(frozen=True)
class Split:
    x: Tensor  # [N, ...] for static inputs, else [N, T, ...]
    y: Tensor


@dataclass(frozen=True)
class Task:
    """A network without norms on a data set. layers: makes its layers from a function for neurons.

    read: "spikes", "membrane" or "linear": what of the last layer enters the loss. The answer is
    the class with the most spikes, or with the largest mean output of a last layer without spikes.
    fixed: neuron options that belong to the task.
    """

    name: str
    about: str
    data: Callable[[], tuple[Split, Split]]
    layers: Callable[[Callable[[], nn.Module]], list[nn.Module]]
    T: int
    epochs: int
    read: str
    batch: int = 64
    lr: float = 1e-3
    cosine: bool = True
    has_time: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)


# ---- data and networks ---------------------------------------------------------------------------


def _images(splits: Any, train: int | None = None, test: int | None = None) -> tuple[Split, Split]:
    def split(part: Any, size: int | None) -> Split:
        x = torch.from_numpy(np.asarray(part.x[:size])).float()
        return Split(x / 255 if part.x.dtype == np.uint8 else x, torch.from_numpy(part.y[:size]))

    return split(splits.train, train), split(splits.test, test)


@cache
def digits() -> tuple[Split, Split]:
    return _images(bs.data.load("digits"))


@cache
def digits_dvs() -> tuple[Split, Split]:
    train, test = _images(bs.data.load("digits-dvs", T=10, size=17))
    return Split(train.x.clamp(max=1), train.y), Split(test.x.clamp(max=1), test.y)


@cache
def mnist(train: int, test: int) -> tuple[Split, Split]:
    return _images(bs.data.load("mnist", DATA), train, test)


@cache
def yin_yang() -> tuple[Split, Split]:
    def split(part: str) -> Split:
        x, y = (np.load(DATA / "yinyang" / f"{part}_{k}.npy") for k in ("samples", "labels"))
        return Split(torch.from_numpy(x).float(), torch.from_numpy(y).long())

    return split("train"), split("test")


def mlp(*widths: int, spiking_output: bool) -> Callable[[Callable[[], nn.Module]], list[nn.Module]]:
    def layers(neuron: Callable[[], nn.Module]) -> list[nn.Module]:
        out: list[nn.Module] = [nn.Flatten(2)]
        for inputs, features in pairwise(widths):
            out += [bs.OverTime(nn.Linear(inputs, features)), neuron()]
        return out if spiking_output else out[:-1]

    return layers


def convolutional(neuron: Callable[[], nn.Module]) -> list[nn.Module]:
    return [
        bs.OverTime(nn.AvgPool2d(2), nn.Conv2d(1, 8, 3, padding=1)),
        neuron(),
        bs.OverTime(nn.Conv2d(8, 16, 3, padding=1)),
        neuron(),
        bs.OverTime(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 49, 10)),
    ]


TUTORIAL = {"tau": 20.0, "decay_input": False, "v_reset": None}  # beta = 0.95, reset by subtraction


def _tutorial(name: str, about: str, read: str, size: int) -> Task:
    return Task(
        name,
        about,
        lambda: mnist(size, 2_000),
        mlp(784, 1000, 10, spiking_output=True),
        T=25,
        epochs=1,
        read=read,
        batch=128,
        lr=5e-4,
        cosine=False,
        fixed=TUTORIAL,
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            "digits, 64-100-10, spike count, T = 4, 10 epochs",
            digits,
            mlp(64, 100, 10, spiking_output=True),
            T=4,
            epochs=10,
            read="spikes",
        ),
        Task(
            "digits-dvs",
            "simulated events of digits, 578-100-100-10, linear output, T = 10, 6 epochs",
            digits_dvs,
            mlp(578, 100, 100, 10, spiking_output=False),
            T=10,
            epochs=6,
            read="linear",
            batch=32,
            lr=3e-3,
            has_time=True,
        ),
        _tutorial(
            "mnist-count", "MNIST, 784-1000-10, loss of the spike count, T = 25", "spikes", 6_400
        ),
        _tutorial(
            "mnist-membrane", "MNIST, 784-1000-10, loss of the membrane, T = 25", "membrane", 6_400
        ),
        Task(
            "convolutional",
            "MNIST at 14x14, two convolutions, linear output, T = 4, 2 epochs",
            lambda: mnist(6_400, 2_000),
            convolutional,
            T=4,
            epochs=2,
            read="linear",
        ),
        Task(
            "yin-yang",
            "Yin-Yang, 4-120-3, spike count, T = 10, 10 epochs",
            yin_yang,
            mlp(4, 120, 3, spiking_output=True),
            T=10,
            epochs=10,
            read="spikes",
            batch=100,
        ),
    )
}


# ---- a run ---------------------------------------------------------------------------------------


def neuron_of(task: Task, setting: Setting) -> Callable[[], nn.Module]:
    options = asdict(setting) | {"surrogate": setting.surrogate} | task.fixed
    del options["weights"]
    return lambda: bs.LIF(**options)


def train(task: Task, neuron: Callable[[], nn.Module], weights: str, seed: int) -> float:
    """The test accuracy after the last epoch."""
    torch.manual_seed(seed)
    data, test = task.data()
    model = bs.Sequential(*task.layers(neuron))
    if weights == "fluctuation":
        bs.init.fluctuation_driven(model, _over_time(task, data.x[:128]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, weight_decay=0.0)
    steps = task.epochs * -(-len(data.y) // task.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: (1 + math.cos(math.pi * i / steps)) / 2 if task.cosine else 1.0
    )
    for _ in range(task.epochs):
        for index in torch.randperm(len(data.y)).split(task.batch):
            loss = _loss(task, model, _over_time(task, data.x[index]), data.y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        answers = [model(_over_time(task, x)).mean(0).argmax(-1) for x in test.x.split(500)]
    return float((torch.cat(answers) == test.y).float().mean())


def _over_time(task: Task, x: Tensor) -> Tensor:
    return x.transpose(0, 1) if task.has_time else x.expand(task.T, *x.shape)


def _loss(task: Task, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    if task.read == "membrane":  # as in the tutorial: the sum over timesteps
        with bs.record(model) as outputs:
            model(x)
        u = list(outputs.values())[-1].membrane
        return sum((cross_entropy(u_t, y) for u_t in u), torch.zeros(()))
    o = model(x)
    # snnTorch's count loss sums spikes; a recipe's readout takes their mean
    logits = o.sum(0) if task.fixed else o.mean(0)
    return cross_entropy(logits, y)


# ---- the stages ----------------------------------------------------------------------------------

FORMER = Setting()
CENTRES = (FORMER, Setting(reset_gradient=0.0, decay_input=False, v_reset=None))
CHANGES: tuple[dict[str, Any], ...] = (
    {"reset_gradient": 0.0},
    {"reset_gradient": 1.0},
    {"v_threshold": 0.5},
    {"decay_input": True},
    {"decay_input": False},
    {"v_reset": None},
    {"v_reset": 0.0},
    {"surrogate": bs.ATan(alpha=1.0)},
    {"surrogate": bs.ATan(alpha=4.0)},
    {"surrogate": bs.Triangle(alpha=1.0)},
    {"surrogate": bs.Sigmoid(alpha=4.0)},
    {"surrogate": bs.SuperSpike(alpha=5.0)},
    {"weights": "fluctuation"},
)


def screened() -> list[Setting]:
    """Every change around every centre, once."""
    return list(dict.fromkeys(s for c in CENTRES for s in (c, *(replace(c, **d) for d in CHANGES))))


SEEDS = 6  # of the finalists
LEARNS = CENTRES[1]
FINALISTS = (
    FORMER,
    LEARNS,
    replace(LEARNS, v_threshold=0.5),
    replace(LEARNS, surrogate=bs.ATan(alpha=4.0)),
    replace(LEARNS, weights="fluctuation"),
)


class Results:
    """Finished runs, one JSON line each: task, setting, seed, accuracy, seconds."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.runs = [json.loads(line) for line in lines]

    def run(self, task: str, setting: str, seed: int, work: Callable[[], float]) -> None:
        """Does the work unless its result is there."""
        if self.accuracy(task, setting, seed) is not None:
            return
        started = time.monotonic()
        accuracy = work()
        found = {"task": task, "setting": setting, "seed": seed, "accuracy": accuracy}
        found["seconds"] = round(time.monotonic() - started, 2)
        self.runs.append(found)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as f:
            f.write(json.dumps(found) + "\n")
        print(f"{100 * accuracy:6.2f} %  {task}, seed {seed}: {setting}", flush=True)

    def accuracy(self, task: str, setting: str, seed: int) -> float | None:
        wanted = {"task": task, "setting": setting, "seed": seed}
        return next((r["accuracy"] for r in self.runs if wanted.items() <= r.items()), None)


def run_settings(results: Results, settings: list[Setting], seeds: int) -> None:
    for seed in range(seeds):
        for setting in settings:
            for task in TASKS.values():
                neuron = neuron_of(task, setting)
                results.run(
                    task.name,
                    # what the task fixes is no part of the setting
                    str(effective(task, setting)),
                    seed,
                    lambda t=task, n=neuron, s=setting, i=seed: train(t, n, s.weights, i),
                )


def effective(task: Task, setting: Setting) -> Setting:
    """The setting with former values where the task fixes the option: no run is repeated."""
    known = {k: getattr(FORMER, k) for k in task.fixed if k != "tau"}
    return replace(setting, **known)


# ---- floors: the defaults of the installed version, against others -------------------------------


def run_floors(results: Results, peer_python: str | None) -> None:
    for seed in range(6):
        for name, activation in (("bs.LIF()", bs.LIF), ("ReLU", nn.ReLU)):
            results.run("fit-digits", name, seed, lambda a=activation, i=seed: fit_digits(a, i))
    for seed in range(3):
        for read in ("membrane", "spikes"):
            whole = _tutorial("", "", read, 60_000)
            task = replace(whole, data=lambda: mnist(60_000, 10_000))
            results.run(
                f"tutorial-{read}",
                "bs.LIF(20, decay_input=False, v_reset=None)",
                seed,
                lambda t=task, i=seed: train(t, lambda: bs.LIF(**TUTORIAL), "torch", i),
            )
            if peer_python:
                results.run(
                    f"tutorial-{read}",
                    "snnTorch",
                    seed,
                    lambda t=task, i=seed: snntorch_tutorial(t, i, peer_python),
                )


def fit_digits(activation: Callable[[], nn.Module], seed: int) -> float:
    """`bs.fit` with the default recipe: 64-100-10 with neurons, or with ReLU where it is hidden."""
    torch.manual_seed(seed)
    hidden = bs.OverTime(nn.Flatten(), nn.Linear(64, 100))
    model = nn.Sequential(hidden, activation(), bs.OverTime(nn.Linear(100, 10)))
    if activation is bs.LIF:
        model.append(activation())
    with tempfile.TemporaryDirectory() as folder:
        recipe = bs.Recipe(seed=seed)
        result = bs.fit(recipe, Path(folder) / "run", model=model, report=False)
    assert result.test_accuracy is not None
    return result.test_accuracy


def snntorch_tutorial(task: Task, seed: int, python: str) -> float:
    data, test = task.data()
    content = {"x": data.x, "y": data.y, "x_test": test.x, "y_test": test.y}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.pt"
        torch.save(content | {"T": task.T, "batch": task.batch, "lr": task.lr}, file)
        script = Path(__file__).with_name("defaults_snntorch.py")
        command = [python, str(script), str(file), str(seed), task.read]
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return float(subprocess.run(command, check=True, capture_output=True, env=clean).stdout)


# ---- tables --------------------------------------------------------------------------------------


def table(results: Results, settings: list[Setting], seeds: int) -> str:
    """Mean accuracy and standard deviation in %, a row per setting and a column per task."""
    lines = [f"| setting | {' | '.join(TASKS)} | mean |", f"|---|{'---|' * (len(TASKS) + 1)}"]
    for setting in settings:
        found = [_accuracies(results, task, setting, seeds) for task in TASKS.values()]
        cells = [
            f"{statistics.mean(a):.1f} ± {statistics.stdev(a):.1f}"
            if len(a) > 1
            # with one seed
            else f"{a[0]:.1f}"
            if a
            else "-"
            for a in found
        ]
        complete = all(found)
        mean = f"{statistics.mean(map(statistics.mean, found)):.1f}" if complete else "-"
        lines.append(f"| {setting} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def paired(results: Results, settings: list[Setting], seeds: int) -> str:
    """Difference to the first setting in points, paired by seed, with its 95 % interval."""
    lines = [f"| setting | {' | '.join(TASKS)} |", f"|---|{'---|' * len(TASKS)}"]
    for setting in settings[1:]:
        cells = []
        for task in TASKS.values():
            before = _accuracies(results, task, settings[0], seeds)
            after = _accuracies(results, task, setting, seeds)
            if len(before) < seeds or len(after) < seeds:
                cells.append("-")
                continue
            d = [b - a for a, b in zip(before, after, strict=True)]
            # 2.571: the 97.5 % quantile of t with 5 degrees of freedom
            half = 2.571 * statistics.stdev(d) / math.sqrt(seeds)
            mean = statistics.mean(d)
            cells.append(f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]")
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracies(results: Results, task: Task, setting: Setting, seeds: int) -> list[float]:
    name = str(effective(task, setting))
    found = [results.accuracy(task.name, name, seed) for seed in range(seeds)]
    return [100 * a for a in found if a is not None]


def floors(results: Results) -> str:
    lines = ["| floor | network | accuracy, % | seeds |", "|---|---|---|---|"]
    known = {(r["task"], r["setting"]) for r in results.runs if r["task"] not in TASKS}
    for task, setting in sorted(known):
        a = [
            100 * r["accuracy"]
            for r in results.runs
            if (r["task"], r["setting"]) == (task, setting)
        ]
        spread = f" ± {statistics.stdev(a):.2f}" if len(a) > 1 else ""
        lines.append(f"| {task} | {setting} | {statistics.mean(a):.2f}{spread} | {len(a)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/defaults.jsonl"))
    parser.add_argument("--stage", choices=("screen", "final", "floors", "show"), default="show")
    parser.add_argument("--seeds", type=int, default=1, help="of the screening")
    parser.add_argument("--peer-python", help="the python of an environment with snnTorch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.out)
    if options.stage == "screen":
        run_settings(results, screened(), options.seeds)
    elif options.stage == "final":
        run_settings(results, list(FINALISTS), SEEDS)
    elif options.stage == "floors":
        run_floors(results, options.peer_python)
    else:
        print("## Screening\n\n" + table(results, screened(), options.seeds))
        print("\n## Finalists\n\n" + table(results, list(FINALISTS), SEEDS))
        print(
            f"\n## Finalists minus `{FINALISTS[0]}`\n\n" + paired(results, list(FINALISTS), SEEDS)
        )
        print("\n## Floors\n\n" + floors(results))


if __name__ == "__main__":
    main()
