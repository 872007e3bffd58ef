"""Fine-tuning digits to a half of the classes, beside training anew.

Prints the accuracy on the test digits of the five classes after every epoch, mean and standard
deviation over seeds, as a Markdown table: a network trained anew, one that starts with the weights
of a network that was trained on the other five classes, the same with frozen convolutions, and one
that starts with the weights of the recipe `digits`, which knows all ten classes.

    python benchmarks/fine_tuning.py [--seeds 5] [--epochs 8] [--limit 100] [--out FOLDER]
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import backspike as bs
from backspike.system.table import Table, left, right

HEAD = {"model.num_classes": 5}


def classes(sets, first):
    """The samples of the five classes from `first` on, with labels 0 to 4."""
    parts = {}
    for name in ("train", "validation", "test"):
        part = getattr(sets, name)
        part = part.take(np.flatnonzero((part.y >= first) & (part.y < first + 5)))
        parts[name] = replace(part, y=part.y - first)
    return parts


def curve(out, seed, options, data, changes):
    """The test accuracy after every epoch, with a new head."""
    recipe = bs.recipes.digits().replace({**HEAD, "seed": seed, **options, **changes})
    result = bs.fit(
        recipe, out, train=data["train"], validation=data["test"], report=False, force=True
    )
    return result.history["validation_accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=100, help="training samples, balanced")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    whole = bs.data.load("digits")
    other = classes(whole, 0)
    wanted = classes(bs.data.load("digits", limit=2 * options.limit), 5)
    curves = {}
    for seed in range(options.seeds):
        first = bs.recipes.digits().replace({**HEAD, "seed": 100 + seed})
        five, ten = out / f"five-{seed}", out / f"ten-{seed}"
        bs.fit(first, five, train=other["train"], validation=other["validation"],
               report=False, force=True)  # fmt: skip
        bs.fit(bs.recipes.digits().replace({"seed": 100 + seed}), ten, report=False, force=True)
        arms = {
            "anew": {},
            "from classes 0 to 4": {"start_from": str(five)},
            "the same, convolutions frozen": {"start_from": str(five), "freeze": "features.*"},
            "from all ten classes": {"start_from": str(ten)},
        }
        short = {"epochs": options.epochs, "batch_size": 10}
        for name, changes in arms.items():
            folder = out / f"{name.replace(' ', '-')}-{seed}"
            curves.setdefault(name, []).append(curve(folder, seed, short, wanted, changes))
    columns = [*left("classes 5 to 9"), *right(*(f"epoch {e + 1}" for e in range(options.epochs)))]
    rows = [
        (name, *(f"{m:.1f} ± {s:.1f}" for m, s in zip(*statistics(found))))
        for name, found in curves.items()
    ]
    print(f"{len(wanted['train'])} training and {len(wanted['test'])} test digits, ", end="")
    print(f"{options.seeds} seeds, % correct")
    print(Table(columns, rows).to_markdown())


def statistics(found):
    array = 100 * np.array(found)
    return array.mean(0), array.std(0, ddof=1) if len(array) > 1 else 0 * array[0]


if __name__ == "__main__":
    main()
