"""Spiking networks beside plain ones on the data for time: test accuracies of three seeds.

    python benchmarks/sequence_accuracy.py [RECIPE ...] [--networks NAME ...] [--epochs N]
                                           [--limit N] [--runs DIR] [--results FILE]

Each recipe trains its spiking network, and a network without spikes in its place: a GRU with as
many layers, or for Yin-Yang, whose inputs are four values, an MLP. The plain network has the same
number of weights (its width is chosen for that), the same samples in the same batches, the same
optimizer, schedule, epochs and precision, and for both the epoch with the best validation accuracy
is tested. `--epochs` and `--limit` (of training samples) replace those of the recipe. Every run
trains on one thread; a complete run is not repeated, and one that was stopped continues. Results
are appended to a JSON file; the table is printed from it. The data are looked for in
BACKSPIKE_DATA, then in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import backspike as bs

DATA = os.environ.get("BACKSPIKE_DATA") or Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "sequence-accuracy.jsonl"
RECIPES = ("yinyang", "spoken-digits", "scifar10", "psmnist-rows", "psmnist")
SEEDS = (0, 1, 2)


class GRU(nn.Module):
    """`[T, B, C]` to `[T, B, K]`: layers of gated recurrent units, and a linear layer."""

    def __init__(self, net: Any, width: int) -> None:
        super().__init__()
        self.features = nn.GRU(net.in_channels, width, len(net.hidden), dropout=net.dropout)
        self.classifier = nn.Linear(width, net.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)[0])


class MLP(nn.Module):
    """One hidden layer of ReLUs on the values that are given as spike times, `[T, B, C]`.

    The same logits at every timestep, `[T, B, K]`.
    """

    def __init__(self, net: Any, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(net.in_channels, width), nn.ReLU(), nn.Linear(width, net.num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        values = x.argmax(0) / (len(x) - 1)
        return self.layers(values).expand(len(x), -1, -1)


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def plain(recipe: bs.Recipe) -> nn.Module:
    """The plain network with most nearly as many weights as the recipe's."""
    kind = MLP if recipe.name == "yinyang" else GRU
    wanted = weights(recipe.network())
    with torch.device("meta"):  # counted without memory
        width = min(range(1, 513), key=lambda n: abs(weights(kind(recipe.model, n)) - wanted))
    torch.manual_seed(recipe.seed)
    return kind(recipe.model, width)


NETWORKS: dict[str, Callable[[bs.Recipe], nn.Module | None]] = {
    "spiking": lambda recipe: None,  # the recipe's own
    "plain": plain,
}


def key(recipe: bs.Recipe, network: str) -> dict[str, Any]:
    """What identifies a run among the results."""
    return {
        "recipe": recipe.name,
        "network": network,
        "epochs": recipe.epochs,
        "samples": recipe.limit or None,  # None: all
        "seed": recipe.seed,
    }


def run(recipe: bs.Recipe, network: str, runs: Path) -> dict[str, Any]:
    """Trains one network, or continues its run; returns its line of the results."""
    model = NETWORKS[network](recipe)
    folder = runs / "-".join(str(part) for part in key(recipe, network).values())
    started = (folder / "recipe.json").is_file()
    options = {"model": model, "device": "cpu", "report": False, "progress": False}
    cpu = time.process_time()
    result = bs.resume(folder, **options) if started else bs.fit(recipe, folder, **options)
    return key(recipe, network) | {
        "about": describe(model or recipe.model),
        "weights": weights(model or recipe.network()),
        "test_accuracy": result.test_accuracy,
        "test_accuracy_last": result.test_accuracy_last,
        "validation_accuracy": result.validation_accuracy,
        "best_epoch": result.best_epoch,
        "seconds": result.seconds,
        "cpu_seconds": None if started else round(time.process_time() - cpu, 1),
        "version": bs.__version__,
        "torch": torch.__version__,
    }


def describe(model: Any) -> str:
    """Its kind and its widths, such as "GRU 80-69-69-10"."""
    match model:
        case GRU(features=layers, classifier=last):
            kind = "GRU"
            widths = layers.input_size, *[layers.hidden_size] * layers.num_layers, last.out_features
        case MLP(layers=layers):
            kind, widths = "MLP", (*layers[0].weight.shape[::-1], layers[2].out_features)
        case _:  # of the recipe
            kind = "spiking, recurrent" if model.recurrent else "spiking"
            widths = model.in_channels, *model.hidden, model.num_classes
    return f"{kind} {'-'.join(map(str, widths))}"


# ---- results and tables --------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Finished runs, one JSON line each."""

    file: Path

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return [line for line in found if wanted.items() <= line.items()]

    def add(self, line: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as f:
            f.write(json.dumps(line) + "\n")


def table(results: Results) -> str:
    """Mean test accuracy and standard deviation in %, a row for all seeds of a network."""
    rows = [
        "| recipe | samples | epochs | network | weights | test accuracy | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in results.lines():
        settings = RECIPES.index(line["recipe"]), line["samples"] or math.inf, line["epochs"]
        groups.setdefault((*settings, line["network"] == "plain"), []).append(line)
    return "\n".join(rows + [_row(groups[group]) for group in sorted(groups)])


def _row(found: list[dict[str, Any]]) -> str:
    first = found[0]
    accuracies = [100 * line["test_accuracy"] for line in found]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(found) > 1 else ""
    cells = (
        first["recipe"],
        "all" if first["samples"] is None else f"{first['samples']:,}",
        first["epochs"],
        first["about"],
        f"{first['weights']:,}",
        f"{statistics.mean(accuracies):.1f}{spread}",
        len(found),
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/sequence-accuracy"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.results)
    changes = {"epochs": args.epochs, "limit": args.limit}
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in args.recipes or RECIPES:
        recipe = replace(bs.recipes.get(name), precision="float32", root=str(DATA), **changes)
        for seed in SEEDS:
            for network in args.networks:
                seeded = replace(recipe, seed=seed)
                if not results.lines(**key(seeded, network)):
                    results.add(line := run(seeded, network, args.runs))
                    print(json.dumps(line), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
