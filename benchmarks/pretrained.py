"""Trains the networks that ship in the package or with a release, and writes their cards.

    make pretrained     # those of the package, into src/backspike/models/weights
    make weights        # those of a release, into build/weights
    python benchmarks/pretrained.py package|release|RECIPE ...

Three seeds of each recipe are trained in float32 into runs/pretrained; a run that is complete is
not repeated, and one that was stopped continues. The run with the best validation accuracy (of
equal ones, the first seed) is copied, with a card that gives the accuracy of all three. For a
release it becomes RECIPE.zip, a run folder that `bs.load` reads once it is unpacked, and SHA256SUMS
has the checksums of all these files. MNIST, spoken digits and CIFAR-10 need their files (see:
backspike data mnist).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from backspike.run import Run

GROUPS = {
    "package": ("digits", "digits-dvs", "mnist", "spoken-digits"),  # below a megabyte in all
    "release": ("cifar10-10min", "cifar10-30min", "cifar10-60min"),
}
SEEDS = (0, 1, 2)
OUT = Path("runs/pretrained")
PACKAGE = Path(__file__).parents[1] / "src/backspike/models/weights"
RELEASE = Path("build/weights")
FILES = ("recipe.json", "env.json", "log.jsonl", "evaluation.npz", "model.safetensors")


def backspike(*words: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", "backspike", *map(str, words)])
    if done.returncode:  # it has said why
        sys.exit(done.returncode)


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
    others = [run for run in runs if run != best]
    backspike("card", best, *others, "--licence", "apache-2.0")
    if recipe in GROUPS["package"]:
        copy(best, PACKAGE / recipe)
    else:
        pack(best, recipe)


def copy(run: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (*FILES, "README.md"):
        shutil.copy(run / name, target)


def pack(run: Path, recipe: str) -> None:
    RELEASE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy(run, Path(folder, recipe))
        shutil.make_archive(str(RELEASE / recipe), "zip", folder, recipe)
    files = sorted(RELEASE.glob("*.zip"))
    sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (RELEASE / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="+", help="package, release or the name of a recipe")
    for word in parser.parse_args().what:
        for name in GROUPS.get(word, (word,)):
            ship(name)
