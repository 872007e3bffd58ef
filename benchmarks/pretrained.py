"""Trains the networks that ship in the package, and writes their cards.

    make pretrained                # or: python benchmarks/pretrained.py [RECIPE ...]

Three seeds of each recipe are trained in float32 into runs/pretrained; a run that is complete is
not repeated, and one that was stopped continues. The run with the best validation accuracy (of
equal ones, the first seed) is copied to src/backspike/models/weights/RECIPE, with a card that
gives the accuracy of all three. MNIST and spoken digits need their files (see: backspike data
mnist).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from backspike.run import Run

RECIPES = ("digits", "digits-dvs", "mnist", "spoken-digits")
SEEDS = (0, 1, 2)
OUT = Path("runs/pretrained")
PACKAGE = Path(__file__).parents[1] / "src/backspike/models/weights"
SHIPPED = ("recipe.json", "env.json", "log.jsonl", "evaluation.npz", "model.safetensors")


def backspike(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "backspike", *map(str, words)], check=True)


def train(recipe: str, seed: int) -> Path:
    run = OUT / f"{recipe}-{seed}"
    if (run / "recipe.json").is_file():
        backspike("resume", run)  # returns at once if it is complete
    else:
        precision = ("--precision", "float32")  # not that of the machine that trains
        backspike("train", recipe, "--seed", str(seed), *precision, "--out", run)
    return run


def validation_accuracy(run: Path) -> float:
    done = Run.open(run).done()
    assert done is not None
    return done["validation_accuracy"]


def ship(recipe: str) -> None:
    runs = [train(recipe, seed) for seed in SEEDS]
    best = max(runs, key=validation_accuracy)
    target = PACKAGE / recipe
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    others = [run for run in runs if run != best]
    backspike("card", best, *others, "--licence", "apache-2.0")
    for name in (*SHIPPED, "README.md"):
        shutil.copy(best / name, target)


if __name__ == "__main__":
    for name in sys.argv[1:] or RECIPES:
        ship(name)
