"""Time of training to 99.0 % on MNIST: backspike against SpikingJelly's usual loop, quarter of an epoch by quarter, in turn.

    python benchmarks/mnist_race.py --peer-python peers/bin/python [--seeds 3] [--epochs 5] [--precision float32]

All train the network of the recipe `mnist` (16-P-32-P-64-P, T = 4, threshold 0.5, triangular surrogate) from the same weights
on the same batches of 128, with AdamW and a cosine, from tensors in memory; so all that differs is the library. backspike runs
in the precision and layout that its trainer would choose, SpikingJelly as installed and, beside it, with bfloat16. The clock
runs while they train and stands while they are tested. The files of MNIST are looked for in BACKSPIKE_DATA, then in
../shared/data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sides import SIDES, Worker, data_root, pythons, serve
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

T, BATCH, RATE, GOAL, TURNS = 4, 128, 3e-3, 0.99, 4  # TURNS: per epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peer-python",
        help="the python of an environment with SpikingJelly; without it backspike runs alone",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of backspike"
    )
    parser.add_argument("--limit", type=int, help="training images, for a try")
    parser.add_argument("--out", type=Path, default=Path("bench/mnist-race.json"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(partial(_start, options.side))
    else:
        _race(options)


# ---- the race ------------------------------------------------------------------------------------------------------------


def _race(options: argparse.Namespace) -> None:
    sides = pythons(options.peer_python)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        file = _write_data(Path(folder) / "mnist.pt", options.limit)
        for seed in range(options.seeds):
            settings = {
                "file": str(file),
                "seed": seed,
                "epochs": options.epochs,
                "threads": options.threads,
            }
            results.append(_one_race(sides, {**settings, "precision": options.precision}))
            for side, run in results[-1].items():
                print(f"seed {seed}, {SIDES[side]}: {_said(run)}", flush=True)
    for side in sides:
        if side != "backspike":
            _compare(results, side)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    complete = {
        "command": sys.argv,
        "torch": torch.__version__,
        "threads": options.threads,
        "precision": options.precision,
    }
    options.out.write_text(json.dumps({**complete, "seeds": results}, indent=1))
    print(f"all turns: {options.out}")


def _write_data(file: Path, limit: int | None) -> Path:
    import backspike as bs

    sets = bs.data.load("mnist", data_root())
    arrays = {
        f"{name}_{k}": torch.from_numpy(getattr(s, k))
        for name, s in zip(("train", "test"), (sets.train, sets.test))
        for k in "xy"
    }
    torch.save({k: v[:limit] if k.startswith("train") else v for k, v in arrays.items()}, file)
    return file


def _one_race(sides: dict[str, str], settings: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """The turns of each side until it reaches the goal or its epochs end: seconds of training and test accuracy."""
    workers = {side: Worker(__file__, side, python) for side, python in sides.items()}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    try:
        for side, worker in workers.items():
            print(f"  {side}: {worker.ask(settings)['precision']}", flush=True)
        for _ in range(TURNS * settings["epochs"]):
            for side, worker in workers.items():
                if not _reached(runs[side]):
                    runs[side].append(worker.ask({}))
                    turn = runs[side][-1]
                    print(
                        f"  {side} turn {len(runs[side])}: {turn['seconds']:.1f} s, test {100 * turn['accuracy']:.2f} %",
                        flush=True,
                    )
    finally:
        for worker in workers.values():
            worker.end()
    return runs


def _reached(run: list[dict[str, float]]) -> bool:
    return bool(run) and run[-1]["accuracy"] >= GOAL


def _seconds(run: list[dict[str, float]]) -> float:
    return sum(turn["seconds"] for turn in run)


def _said(run: list[dict[str, float]]) -> str:
    speed = f"{statistics.median(turn['seconds'] for turn in run) * TURNS:.1f} s an epoch"
    epochs, best = len(run) / TURNS, max(turn["accuracy"] for turn in run)
    if not _reached(run):
        return f"{GOAL:.1%} not reached in {epochs:g} epochs, best {best:.2%}; {speed}"
    return f"{best:.2%} after {_seconds(run):.1f} s, {epochs:g} epochs; {speed}"


def _compare(results: list[dict[str, list[dict[str, float]]]], peer: str) -> None:
    if both := [
        (r[peer], r["backspike"]) for r in results if _reached(r[peer]) and _reached(r["backspike"])
    ]:
        ratio = statistics.median(_seconds(theirs) / _seconds(ours) for theirs, ours in both)
        print(
            f"against {SIDES[peer]}: time to {GOAL:.1%} {ratio:.2f} x shorter (median of {len(both)} seeds)"
        )
    theirs, ours = (
        statistics.median(t["seconds"] for r in results for t in r[side])
        for side in (peer, "backspike")
    )
    print(f"against {SIDES[peer]}: an epoch {theirs / ours:.2f} x shorter")


# ---- a side, in its own process ------------------------------------------------------------------------------------------


def _start(
    side: str, settings: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    made = (
        _Ours(settings["precision"])
        if side == "backspike"
        else _Peer("bfloat16" if side.endswith("bf16") else "float32")
    )
    training = _Training(made, settings)
    return {"precision": made.precision}, lambda _: training.turn()


class _Ours:
    """backspike as its trainer runs the recipe: freed memory kept, precision and layout chosen, the optimizer in one pass."""

    def __init__(self, precision: str) -> None:
        import backspike as bs
        from backspike.train.precision import choose

        bs.keep_heap()
        self.fused = True
        self.model: nn.Module = bs.models.convnet(
            "16-P-32-P-64-P",
            neuron=lambda channels: bs.LIF(
                v_threshold=0.5, surrogate=bs.Triangle(alpha=2.0), channels=channels
            ),
        )
        recipe = replace(bs.recipes.mnist(), precision=precision, batch_size=BATCH)
        recipe = choose(recipe, self.model, torch.zeros(T, 1, 1, 28, 28)).recipe
        self.precision = recipe.precision
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x.expand(T, *x.shape))

    def reset(self) -> None:
        """Every call starts from rest."""


class _Peer:
    """SpikingJelly as its documentation trains: multi-step layers, the image repeated over time, a reset after each batch."""

    def __init__(self, precision: str) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        self.reset_net, self.fused, self.precision = functional.reset_net, False, precision
        parts: list[nn.Module] = []
        for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
            parts += [
                layer.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                layer.BatchNorm2d(outputs),
            ]
            # the triangle of peak 2, under the name it has there
            step = surrogate.PiecewiseQuadratic(alpha=2.0)
            parts += [
                neuron.LIFNode(tau=2.0, v_threshold=0.5, surrogate_function=step),
                layer.AvgPool2d(2),
            ]
        self.model = nn.Sequential(*parts, layer.Flatten(), layer.Linear(64 * 9, 10))
        functional.set_step_mode(self.model, step_mode="m")

    def outputs(self, x: Tensor) -> Tensor:
        return self.model(x.unsqueeze(0).repeat(T, 1, 1, 1, 1))

    def reset(self) -> None:
        self.reset_net(self.model)


class _Training:
    def __init__(self, side: _Ours | _Peer, settings: dict[str, Any]) -> None:
        data = torch.load(settings["file"], weights_only=True)
        self.side = side
        self.x, self.test_x = (data[k].float() / 255 for k in ("train_x", "test_x"))
        self.y, self.test_y = data["train_y"].long(), data["test_y"].long()
        self.generator = torch.Generator().manual_seed(settings["seed"])
        batches = len(self.y) // BATCH
        self.turns = [
            batches * (i + 1) // TURNS - batches * i // TURNS for i in range(TURNS)
        ] * settings["epochs"]
        self.optimizer = torch.optim.AdamW(side.model.parameters(), lr=RATE, fused=side.fused)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, batches * settings["epochs"]
        )
        self.left: list[Tensor] = []

    def turn(self) -> dict[str, float]:
        """A quarter of an epoch: seconds of training, and the accuracy on the test set afterwards."""
        start = time.perf_counter()
        self.side.model.train()
        for _ in range(self.turns.pop()):
            self._step()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "accuracy": self._accuracy()}

    def _step(self) -> None:
        if not self.left:
            self.left = list(torch.randperm(len(self.y), generator=self.generator).split(BATCH))
            self.left = [batch for batch in self.left if len(batch) == BATCH]
        batch = self.left.pop()
        self.optimizer.zero_grad()
        loss = cross_entropy(self._logits(self.x[batch]), self.y[batch])
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.side.reset()

    def _logits(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.side.precision == "bfloat16"):
            outputs = self.side.outputs(x)
        return outputs.float().mean(0)

    @torch.no_grad()
    def _accuracy(self) -> float:
        self.side.model.eval()
        right = 0
        for x, y in zip(self.test_x.split(500), self.test_y.split(500)):
            right += (self._logits(x).argmax(1) == y).sum().item()
            self.side.reset()
        return right / len(self.test_y)


if __name__ == "__main__":
    main()
