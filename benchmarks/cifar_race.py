"""Accuracy on CIFAR-10 after a fixed time of training: backspike against SpikingJelly's usual loop, slice by slice in turn.

    python benchmarks/cifar_race.py --peer-python peers/bin/python [--minutes 10] [--slice 20] [--seeds 1] [--only backspike]

All train the network of the recipe `cifar10-small` with its settings, from the same weights, on the same batches with the same
crops and flips, from tensors in memory. The learning rate follows the clock, so that it ends at zero for everyone when the time
is over: who is faster sees more images. backspike trains in the precision that its trainer chooses; SpikingJelly as installed
and, beside it, with bfloat16. The clock runs while they train and stands while they are tested. All 50,000 images train; the
test set is looked at once a minute and decides nothing. The files are looked for in BACKSPIKE_DATA, then in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sides import SIDES, Worker, data_root, pythons, serve
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

PAD = 4


@dataclass(frozen=True)
class Settings:
    """What every side is given, from the recipe: the other environment has no backspike."""

    file: str
    seed: int
    threads: int
    seconds: float
    bfloat16: bool
    channels_last: bool
    T: int
    layout: str
    tau: float
    v_threshold: float
    alpha: float
    batch: int
    lr: float
    weight_decay: float
    smoothing: float
    warmup: float  # share of the time


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python",
        help="the python of an environment with SpikingJelly; without it backspike runs alone",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each side")
    parser.add_argument(
        "--slice",
        type=float,
        default=20.0,
        help="seconds that a side trains before the next one does",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help=f"sides, by commas: {', '.join(SIDES)}")
    parser.add_argument("--out", type=Path, default=Path("bench/cifar-race.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(partial(_start, options.side))
    else:
        _race(options)


# ---- the race ------------------------------------------------------------------------------------------------------------


def _race(options: argparse.Namespace) -> None:
    wanted = options.only.split(",") if options.only else list(SIDES)
    sides = {
        side: python for side, python in pythons(options.peer_python).items() if side in wanted
    }
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = _write_data(Path(folder) / "cifar.pt")
        for seed in range(options.seeds):
            settings = _settings(file, seed, options.threads, 60 * options.minutes)
            results.append(_one_race(sides, settings, options.slice))
            for side, run in results[-1].items():
                print(f"seed {seed}, {SIDES[side]}: {_said(run)}", flush=True)
    for side in sides:
        last = [run[side][-1]["accuracy"] for run in results]
        print(
            f"{SIDES[side]}: {100 * statistics.mean(last):.2f} % after {options.minutes:g} min, {len(last)} seeds"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = {
        "command": sys.argv,
        "torch": torch.__version__,
        "settings": asdict(settings),
        "seeds": results,
    }
    options.out.write_text(json.dumps(written, indent=1))
    print(f"all slices: {options.out}")


def _write_data(file: Path) -> Path:
    import backspike as bs

    sets = bs.data.load("cifar10", data_root())
    parts = {"train": (sets.train, sets.validation), "test": (sets.test,)}
    arrays = {
        f"{name}_{k}": torch.cat([torch.tensor(getattr(split, k)) for split in splits])
        for name, splits in parts.items()
        for k in "xy"
    }
    torch.save(arrays, file)
    return file


def _settings(file: Path, seed: int, threads: int, seconds: float) -> Settings:
    import backspike as bs
    from backspike.train.precision import choose

    recipe = bs.recipes.cifar10_small()
    chosen = choose(
        recipe, recipe.model.build(recipe.neuron), torch.zeros(recipe.T, 1, 3, 32, 32)
    ).recipe
    neuron, optimizer = recipe.neuron, recipe.optimizer
    return Settings(
        file=str(file),
        seed=seed,
        threads=threads,
        seconds=seconds,
        bfloat16=chosen.precision == "bfloat16",
        channels_last=bool(chosen.channels_last),
        T=recipe.T,
        layout=recipe.model.layout,
        tau=neuron.tau,
        v_threshold=neuron.v_threshold,
        alpha=neuron.surrogate.alpha,
        batch=recipe.batch_size,
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        smoothing=recipe.loss.label_smoothing,
        warmup=recipe.warmup_epochs / recipe.epochs,
    )


def _one_race(
    sides: dict[str, str], settings: Settings, slice: float
) -> dict[str, list[dict[str, float]]]:
    """The slices of each side: seconds trained so far, images seen so far and, once a minute and last, the test accuracy."""
    workers = {side: Worker(__file__, side, python) for side, python in sides.items()}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    try:
        for worker in workers.values():
            worker.ask(asdict(settings))
        while any(_left(run, settings) > 0 for run in runs.values()):
            for side, worker in workers.items():
                left = _left(runs[side], settings)
                if left <= 0:
                    continue
                runs[side].append(worker.ask({"seconds": min(slice, left)}))
                print(f"  {side}: {_said(runs[side])}", flush=True)
    finally:
        for worker in workers.values():
            worker.end()
    return runs


def _left(run: list[dict[str, float]], settings: Settings) -> float:
    return settings.seconds - (run[-1]["seconds"] if run else 0.0)


def _said(run: list[dict[str, float]]) -> str:
    tested = f", test {100 * run[-1]['accuracy']:.2f} %" if "accuracy" in run[-1] else ""
    seconds, epochs = run[-1]["seconds"], run[-1]["images"] / 50_000
    return f"{seconds:.0f} s, {epochs:.2f} epochs ({seconds / epochs:.1f} s each), loss {run[-1]['loss']:.3f}{tested}"


# ---- a side, in its own process ------------------------------------------------------------------------------------------


def _start(
    side: str, given: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    settings = Settings(**given)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    training = _Training({"backspike": _Ours}.get(side, _Peer)(settings, side), settings)
    return {}, lambda request: training.slice(request["seconds"])


class _Ours:
    """backspike as its trainer runs it: freed memory kept, the optimizer in one pass, convolutions channels last."""

    def __init__(self, settings: Settings, side: str) -> None:
        import backspike as bs

        bs.keep_heap()
        self.T, self.bfloat16, self.fused, self.channels_last = (
            settings.T,
            settings.bfloat16,
            True,
            settings.channels_last,
        )
        surrogate = bs.Triangle(alpha=settings.alpha)

        def neuron(channels: int) -> nn.Module:
            return bs.LIF(
                tau=settings.tau,
                v_threshold=settings.v_threshold,
                surrogate=surrogate,
                channels=channels,
            )

        self.model: nn.Module = bs.models.convnet(settings.layout, 10, 3, size=32, neuron=neuron)
        for m in self.model.modules():
            if isinstance(m, nn.Conv2d) and self.channels_last:
                m.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def outputs(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last) if self.channels_last else x
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model(x.expand(self.T, *x.shape)).float()

    def reset(self) -> None:
        """Every call starts from rest."""


class _Peer:
    """SpikingJelly as its documentation trains: multi-step layers, the image repeated over time, a reset after each batch."""

    def __init__(self, settings: Settings, side: str) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        self.T, self.bfloat16, self.fused = settings.T, side.endswith("bf16"), False
        self.reset_net = functional.reset_net
        # the triangle, under the name it has there
        step = surrogate.PiecewiseQuadratic(alpha=settings.alpha)
        parts: list[nn.Module] = []
        inputs, size = 3, 32
        for item in settings.layout.split("-"):
            if item == "P":
                parts.append(layer.AvgPool2d(2))
                size //= 2
                continue
            parts += [
                layer.Conv2d(inputs, int(item), 3, padding=1, bias=False),
                layer.BatchNorm2d(int(item)),
            ]
            parts.append(
                neuron.LIFNode(
                    tau=settings.tau, v_threshold=settings.v_threshold, surrogate_function=step
                )
            )
            inputs = int(item)
        self.model = nn.Sequential(*parts, layer.Flatten(), layer.Linear(inputs * size * size, 10))
        functional.set_step_mode(self.model, step_mode="m")

    def outputs(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return self.model(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).float()

    def reset(self) -> None:
        self.reset_net(self.model)


class _Training:
    def __init__(self, side: _Ours | _Peer, settings: Settings) -> None:
        data = torch.load(settings.file, weights_only=True)
        self.side, self.settings = side, settings
        self.x, self.y, self.test_x, self.test_y = (
            data[k] for k in ("train_x", "train_y", "test_x", "test_y")
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        decay = {"weight_decay": settings.weight_decay, "nesterov": True, "momentum": 0.9}
        self.optimizer = torch.optim.SGD(
            side.model.parameters(), lr=settings.lr, **decay, fused=side.fused
        )
        self.left: list[Tensor] = []
        self.seconds, self.images, self.tested = 0.0, 0, 0.0

    def slice(self, seconds: float) -> dict[str, float]:
        """Trains for so long; the test accuracy stands beside it once a minute and when the time is over."""
        start, before, loss = time.perf_counter(), self.seconds, 0.0
        self.side.model.train()
        while self.seconds - before < seconds:
            loss = self._step()
            self.seconds = before + time.perf_counter() - start
        done = {"seconds": self.seconds, "images": self.images, "loss": loss}
        if self.seconds >= min(self.tested + 60, self.settings.seconds):
            self.tested = self.seconds
            done["accuracy"] = self._accuracy()
        return done

    def _step(self) -> float:
        if not self.left:
            batches = torch.randperm(len(self.y), generator=self.generator).split(
                self.settings.batch
            )
            self.left = [batch for batch in batches if len(batch) == self.settings.batch]
        batch = self.left.pop()
        x, y = self._moved(self.x[batch].float() / 255), self.y[batch]
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad()
        loss = cross_entropy(
            self.side.outputs(x).mean(0), y, label_smoothing=self.settings.smoothing
        )
        loss.backward()
        self.optimizer.step()
        self.side.reset()
        self.images += len(batch)
        return loss.item()

    def _learning_rate(self) -> float:
        """A straight warm-up and a cosine to zero, by the clock."""
        done, warmup = min(self.seconds / self.settings.seconds, 1.0), self.settings.warmup
        if done < warmup:
            return self.settings.lr * max(done / warmup, 1e-3)
        return self.settings.lr * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def _moved(self, x: Tensor) -> Tensor:
        """Every image moved by up to 4 pixels in each direction, and every second one mirrored."""
        B, _, H, W = x.shape
        rows, columns = (
            torch.randint(2 * PAD + 1, (B, 1), generator=self.generator) + torch.arange(n)
            for n in (H, W)
        )
        mirrored = torch.rand(B, 1, generator=self.generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        image = torch.arange(B).view(B, 1, 1)
        return (
            pad(x, [PAD] * 4)
            .movedim(1, 3)[image, rows[:, :, None], columns[:, None, :]]
            .movedim(3, 1)
        )

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.side.model.eval()
        right = 0
        for x, y in zip(self.test_x.split(500), self.test_y.split(500)):
            right += (self.side.outputs(x.float() / 255).mean(0).argmax(1) == y).sum().item()
            self.side.reset()
        return right / len(self.test_y)


if __name__ == "__main__":
    main()
