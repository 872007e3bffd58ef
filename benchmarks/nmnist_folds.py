"""Does MSG help where event data are few? Cross-validation on the 1,000 real N-MNIST recordings, and the 100 for testing.

    python benchmarks/nmnist_folds.py [--folds 5] [--epochs 20] [--out DIR]

Each fold leaves out a fifth of the training recordings, trains without mask and with MSG on the rest, and tests on the fifth
and on the 100 test recordings. The last epoch counts: no choice is made on what is tested.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import backspike as bs
from backspike.study.statistics import paired
from backspike.surrogate import Masked, Triangle
from backspike.system.table import Table, left, right

ARMS = {"no mask": Triangle(), "MSG p=0.5": Masked(Triangle(), p=0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("studies/nmnist-folds"))
    options = parser.parse_args()
    sets = bs.data.load("nmnist", T=10, size=17)
    x = np.concatenate([sets.train.x, sets.validation.x])
    y = np.concatenate([sets.train.y, sets.validation.y])
    fold = np.random.default_rng(0).permutation(len(y)) % options.folds
    left_out: dict[str, list[float]] = {arm: [] for arm in ARMS}
    tested: dict[str, list[float]] = {arm: [] for arm in ARMS}
    fitted: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for k in range(options.folds):
        train, test = (bs.data.Split(x[m], y[m], np.flatnonzero(m)) for m in (fold != k, fold == k))
        for arm, surrogate in ARMS.items():
            changes = {
                "epochs": options.epochs,
                "seed": k,
                "neuron.surrogate": surrogate,
                "augment": (),
                "name": arm,
            }
            recipe = bs.recipes.get("digits-dvs").replace(changes)
            run = options.out / arm.replace(" ", "-") / str(k)
            result = bs.fit(recipe, run, train=train, test=test, force=True, report=False)
            left_out[arm].append(result.test_accuracy_last or 0.0)
            tested[arm].append(bs.evaluate(run, test=sets.test)["test_accuracy"])
            fitted[arm].append(
                json.loads((run / "log.jsonl").read_text().splitlines()[-2])["train_accuracy"]
            )
            print(
                f"fold {k}, {arm}: left out {left_out[arm][-1]:.3f}, test {tested[arm][-1]:.3f}",
                flush=True,
            )
    print(
        f"\n{len(y)} recordings, {options.folds} folds, {options.epochs} epochs, torch {torch.__version__}\n"
    )
    rows = []
    for arm in ARMS:
        d = paired(left_out[arm], left_out["no mask"])
        measured = (fitted[arm], left_out[arm], tested[arm])
        means = [f"{100 * np.mean(v):.1f} ± {100 * np.std(v, ddof=1):.1f}" for v in measured]
        difference = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
        compared = ["", ""] if arm == "no mask" else [difference, f"{d.p:.3f}"]
        rows.append([arm, *means, *compared])
    heads = ("training, last epoch, %", "left out, %", "the 100, %")
    heads += ("difference of left out, points [95 % CI]", "p")
    print(Table([*left("arm"), *right(*heads)], rows).to_markdown(), end="")


if __name__ == "__main__":
    main()
