"""Spiking networks beside plain ones on the data for time: test accuracies of three seeds.

    python benchmarks/sequence_accuracy.py [RECIPE ...] [--runs DIR] [--results FILE]

Each recipe trains its spiking network, and a network without spikes in its place: a GRU with as
many layers, or for Yin-Yang, whose inputs are four values, an MLP. The plain network has the same
number of weights (its width is chosen for that), the same samples in the same batches, the same
optimizer, schedule, epochs and precision, and for both the epoch with the best validation accuracy
is tested. Every run trains on one thread; a complete run is not repeated, and one that was stopped
continues. Results are appended to a JSON file; the tables are printed from it. The data are looked
for in BACKSPIKE_DATA, then in ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
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


def run(name: str, network: str, seed: int, runs: Path) -> dict[str, Any]:
    """Trains one network, or continues its run; returns its line of the results."""
    recipe = bs.recipes.get(name)
    recipe = replace(recipe, seed=seed, precision="float32", root=str(DATA))
    model = NETWORKS[network](recipe)
    folder = runs / f"{name}-{network}-{seed}"
    started = (folder / "recipe.json").is_file()
    begin = bs.resume if started else lambda out, **options: bs.fit(recipe, out, **options)
    result = begin(folder, model=model, device="cpu", report=False, progress=False)
    return {
        "recipe": name,
        "network": network,
        "seed": seed,
        "about": describe(model or recipe.model),
        "weights": weights(model or recipe.network()),
        "test_accuracy": result.test_accuracy,
        "test_accuracy_last": result.test_accuracy_last,
        "validation_accuracy": result.validation_accuracy,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "samples": recipe.limit or None,
        "seconds": result.seconds,
        "version": bs.__version__,
        "torch": torch.__version__,
    }


def describe(model: Any) -> str:
    match model:
        case GRU():
            layers = model.features
            widths = [layers.input_size, *[layers.hidden_size] * layers.num_layers]
            return f"GRU {'-'.join(map(str, widths))}-{model.classifier.out_features}"
        case MLP():
            first, _, last = model.layers
            return f"MLP {first.in_features}-{first.out_features}-{last.out_features}"
    return repr(model)


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
    """Mean test accuracy and standard deviation in %, a row for each recipe and network."""
    rows = [
        "| recipe | network | weights | epochs | test accuracy | seeds | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in RECIPES:
        for network in NETWORKS:
            if found := results.lines(recipe=name, network=network):
                rows.append(_row(found))
    return "\n".join(rows)


def _row(found: list[dict[str, Any]]) -> str:
    first = found[0]
    accuracies = [100 * line["test_accuracy"] for line in found]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(found) > 1 else ""
    minutes = statistics.mean(line["seconds"] for line in found) / 60
    cells = (
        first["recipe"],
        first["about"],
        f"{first['weights']:,}",
        first["epochs"],
        f"{statistics.mean(accuracies):.1f}{spread} %",
        len(found),
        f"{minutes:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--runs", type=Path, default=Path("runs/sequence-accuracy"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(args.results)
    for name in args.recipes or RECIPES:
        for seed in SEEDS:
            for network in NETWORKS:
                if not results.lines(recipe=name, network=network, seed=seed):
                    results.add(line := run(name, network, seed, args.runs))
                    print(json.dumps(line), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
