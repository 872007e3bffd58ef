"""Accuracy on CIFAR-10 after a fixed training time: backspike against SpikingJelly's usual loop.

    python benchmarks/cifar_race.py --peer-python peers/bin/python [--recipe cifar10-30min]
                                    [--minutes 10] [--slice 20] [--seeds 1] [--only backspike]

All sides train the network of a recipe with its settings, from the same weights, on the same
batches with the same augmentation, from tensors in memory, with the recipe's optimizer. They take
turns, a slice of time each, so that all meet the same load on the machine. The learning rate
follows the clock and ends at zero for everyone: a faster side sees more images. backspike trains in
the precision that its trainer chooses, and with the recipe's convolutions; SpikingJelly as
installed and also with bfloat16. The clock stops during testing. All 50,000 images train; the test
set is evaluated once a minute and decides nothing. The data are looked for in BACKSPIKE_DATA, then
in ../shared/data.

Each side is a process: this script, started with `--side NAME` by the Python of its environment.
It answers each JSON line with another. The peer's environment needs SpikingJelly and backspike,
which gives it recipe, augmentation and optimizer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from backspike.recipes import Recipe

SIDES = {
    "backspike": "backspike",
    "spikingjelly": "SpikingJelly",
    "spikingjelly-bf16": "SpikingJelly, bf16",
}
RECIPES = ("cifar10-small", "cifar10-10min", "cifar10-30min", "cifar10-60min")


@dataclass(frozen=True)
class Settings:
    """What every side is given."""

    file: str
    recipe: dict[str, Any]  # as Recipe.to_dict
    threads: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python",
        help="the python of an environment with backspike and SpikingJelly; without it backspike "
        "runs alone",
    )
    parser.add_argument("--recipe", choices=RECIPES, default="cifar10-small")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each side")
    parser.add_argument("--slice", type=float, default=20.0, help="seconds of training per turn")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help=f"sides, by commas: {', '.join(SIDES)}")
    parser.add_argument("--out", type=Path, default=Path("bench/cifar-race.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side)
    else:
        race(options)


# ---- the race ------------------------------------------------------------------------------------


def race(options: argparse.Namespace) -> None:
    import backspike as bs

    recipe = bs.recipes.get(options.recipe)
    wanted = options.only.split(",") if options.only else list(SIDES)
    pythons = {
        side: sys.executable if side == "backspike" else options.peer_python for side in SIDES
    }
    sides = {side: python for side, python in pythons.items() if python and side in wanted}
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = write_data(Path(folder) / "cifar.pt")
        for seed in range(options.seeds):
            given = replace(recipe, seed=seed).to_dict()
            settings = Settings(str(file), given, options.threads, 60 * options.minutes)
            results.append(run_race(sides, settings, options.slice))
            for side, slices in results[-1].items():
                print(f"seed {seed}, {SIDES[side]}: {describe(slices)}", flush=True)
    for side in sides:
        last = [run[side][-1]["accuracy"] for run in results]
        mean = f"{100 * statistics.mean(last):.2f} %"
        print(f"{SIDES[side]}: {mean} after {options.minutes:g} min, {len(last)} seeds")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = {
        "command": sys.argv,
        "torch": torch.__version__,
        "settings": asdict(settings),
        "seeds": results,
    }
    options.out.write_text(json.dumps(written, indent=1))
    print(f"all slices: {options.out}")


def write_data(file: Path) -> Path:
    import backspike as bs

    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = None if os.environ.get("BACKSPIKE_DATA") or not shared.exists() else str(shared)
    sets = bs.data.load("cifar10", root)
    parts = {"train": (sets.train, sets.validation), "test": (sets.test,)}
    arrays = {
        f"{name}_{k}": torch.cat([torch.tensor(getattr(split, k)) for split in splits])
        for name, splits in parts.items()
        for k in "xy"
    }
    torch.save(arrays, file)
    return file


def run_race(
    sides: dict[str, str], settings: Settings, slice: float
) -> dict[str, list[dict[str, float]]]:
    """The slices of each side.

    A slice is the seconds trained and images seen so far, the loss and, once a minute and at the
    end, the test accuracy.
    """
    workers = {side: Worker(side, python) for side, python in sides.items()}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    try:
        for worker in workers.values():
            worker.ask(asdict(settings))
        while any(remaining(run, settings) > 0 for run in runs.values()):
            for side, worker in workers.items():
                left = remaining(runs[side], settings)
                if left <= 0:
                    continue
                runs[side].append(worker.ask({"seconds": min(slice, left)}))
                print(f"  {side}: {describe(runs[side])}", flush=True)
    finally:
        for worker in workers.values():
            worker.end()
    return runs


def remaining(run: list[dict[str, float]], settings: Settings) -> float:
    return settings.seconds - (run[-1]["seconds"] if run else 0.0)


def describe(run: list[dict[str, float]]) -> str:
    tested = f", test {100 * run[-1]['accuracy']:.2f} %" if "accuracy" in run[-1] else ""
    seconds, epochs = run[-1]["seconds"], run[-1]["images"] / 50_000
    return (
        f"{seconds:.0f} s, {epochs:.2f} epochs ({seconds / epochs:.1f} s each), "
        f"loss {run[-1]['loss']:.3f}{tested}"
    )


class Worker:
    """A side in its own process."""

    def __init__(self, side: str, python: str) -> None:
        # as backspike's command line does: threads do not wait by spinning
        env = {"GOMP_SPINCOUNT": "1000", **os.environ} if side == "backspike" else None
        command = [python, "-W", "ignore", __file__, "--side", side]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        time.sleep(0.05)  # lets threads of the previous side stop spinning
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"a side of the race ended with exit code {code}; see its error above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


# ---- a side, in its own process ------------------------------------------------------------------


def serve(side: str) -> None:
    """Sets up with the first request, then trains a slice per request."""
    import backspike as bs

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error
    settings = Settings(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(settings.threads)
    if side == "backspike":
        bs.keep_heap()  # as its trainer does
    training = Training(side, settings)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        answer = training.train_slice(json.loads(line)["seconds"])
        print(json.dumps(answer), file=answers, flush=True)


class Backspike:
    """As its trainer runs it: convolutions channels-last, in the precision of this processor."""

    def __init__(self, recipe: Recipe) -> None:
        import backspike as bs
        from backspike.train.network import to_channels_last
        from backspike.train.precision import choose

        self.T, self.model = recipe.T, recipe.network()
        bs.set_convolution(self.model, recipe.convolution)
        chosen = choose(recipe, self.model, torch.zeros(self.T, 1, 3, 32, 32)).recipe
        self.bfloat16, self.channels_last = chosen.precision == "bfloat16", chosen.channels_last
        if self.channels_last:
            to_channels_last(self.model)

    def outputs(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model(x.expand(self.T, *x.shape)).float()

    def reset(self) -> None:
        """Every call starts from rest."""


class SpikingJelly:
    """As its documentation trains: multi-step layers, the image repeated over time, a reset after
    each batch.
    """

    def __init__(self, recipe: Recipe, bfloat16: bool) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        self.T, self.bfloat16 = recipe.T, bfloat16
        self.reset_net = functional.reset_net
        lif = recipe.neuron
        # its name for the triangle
        step = surrogate.PiecewiseQuadratic(alpha=lif.surrogate.alpha)
        parts: list[nn.Module] = []
        inputs, size = 3, 32
        for item in recipe.model.layout.split("-"):
            if item == "P":
                parts.append(layer.AvgPool2d(2))
                size //= 2
                continue
            parts += [
                layer.Conv2d(inputs, int(item), 3, padding=1, bias=False),
                layer.BatchNorm2d(int(item)),
                neuron.LIFNode(
                    tau=lif.tau,
                    decay_input=lif.decay_input,
                    v_threshold=lif.v_threshold,
                    v_reset=lif.v_reset,
                    surrogate_function=step,
                ),
            ]
            inputs = int(item)
        self.model = nn.Sequential(*parts, layer.Flatten(), layer.Linear(inputs * size * size, 10))
        functional.set_step_mode(self.model, step_mode="m")

    def outputs(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).float()

    def reset(self) -> None:
        self.reset_net(self.model)


class Training:
    def __init__(self, side: str, settings: Settings) -> None:
        from backspike.recipes import Recipe
        from backspike.train.schedule import parameter_groups

        data = torch.load(settings.file, weights_only=True)
        self.x, self.y, self.test_x, self.test_y = (
            data[k] for k in ("train_x", "train_y", "test_x", "test_y")
        )
        self.limit, self.recipe = settings.seconds, Recipe.from_dict(settings.recipe)
        torch.manual_seed(self.recipe.seed)
        self.network: Backspike | SpikingJelly
        if side == "backspike":
            self.network = Backspike(self.recipe)
        else:
            self.network = SpikingJelly(self.recipe, bfloat16=side.endswith("bf16"))
        self.optimizer = self.recipe.optimizer.build(
            parameter_groups(self.network.model, self.recipe)
        )
        self.random = torch.manual_seed(self.recipe.seed).get_state()  # of batches, augmentation
        self.batches: list[Tensor] = []
        self.seconds, self.images, self.tested = 0.0, 0, 0.0

    def train_slice(self, seconds: float) -> dict[str, float]:
        """Trains for that long; tests once a minute and at the end."""
        start, before, loss = time.perf_counter(), self.seconds, 0.0
        self.network.model.train()
        while self.seconds - before < seconds:
            loss = self._step()
            self.seconds = before + time.perf_counter() - start
        done = {"seconds": self.seconds, "images": self.images, "loss": loss}
        if self.seconds >= min(self.tested + 60, self.limit):
            self.tested = self.seconds
            done["accuracy"] = self._test()
        return done

    def _step(self) -> float:
        x, y = self._next_batch()
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.zero_grad()
        o = self.network.outputs(x)
        loss = self.recipe.loss_value(o, o.mean(0), y)
        loss.backward()
        self.optimizer.step()
        self.network.reset()
        self.images += len(y)
        return loss.item()

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        torch.set_rng_state(self.random)  # a network may draw random numbers, too
        if not self.batches:
            order, size = torch.randperm(len(self.y)), self.recipe.batch_size
            self.batches = [batch for batch in order.split(size) if len(batch) == size]
        batch = self.batches.pop()
        x = self.x[batch].float() / 255
        for change in self.recipe.augment:
            x = change(x)
        self.random = torch.get_rng_state()
        return x, self.y[batch]

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero, by the clock."""
        done, lr = min(self.seconds / self.limit, 1.0), self.recipe.optimizer.lr
        warmup = self.recipe.warmup_epochs / self.recipe.epochs  # share of the time
        if done < warmup:
            return lr * max(done / warmup, 1e-3)
        return lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    @torch.no_grad()
    def _test(self) -> float:
        self.network.model.eval()
        correct = 0
        for x, y in zip(self.test_x.split(500), self.test_y.split(500)):
            correct += (self.network.outputs(x.float() / 255).mean(0).argmax(1) == y).sum().item()
            self.network.reset()
        return correct / len(self.test_y)


if __name__ == "__main__":
    main()
