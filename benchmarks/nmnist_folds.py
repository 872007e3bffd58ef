"""Do MSG and TWO help where event data are few? Cross-validation on 1,000 real N-MNIST recordings.

    python benchmarks/nmnist_folds.py [--folds 10] [--epochs 20] [--out DIR]

Each fold leaves out a part of the training recordings, trains every arm on the rest, and tests on
the part left out and on the 100 test recordings. The last epoch counts: nothing is chosen by what
is tested. Runs that are finished are not repeated, so the command continues after a stop.
`DIR/folds.json` gets all figures, and the table is printed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import backspike as bs
from backspike import Masked, Triangle
from backspike.recipes.values import TWO, Mean
from backspike.run import Run
from backspike.study.statistics import paired

ARMS = {
    "baseline": (None, Mean()),
    "TWO": (None, TWO(start_epoch=1)),
    "MSG p=0.25": (0.25, Mean()),
    "MSG p=0.5": (0.5, Mean()),
    "MSG p=0.75": (0.75, Mean()),
    "MSG p=0.5 + TWO": (0.5, TWO(start_epoch=1)),
}
MEASURED = ("training", "left out", "the 100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("studies/nmnist-folds"))
    options = parser.parse_args()
    sets = bs.data.load("nmnist", T=10, size=17)
    x = np.concatenate([sets.train.x, sets.validation.x])
    y = np.concatenate([sets.train.y, sets.validation.y])
    fold_of = np.random.default_rng(0).permutation(len(y)) % options.folds
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for fold in range(options.folds):
        rest, left_out = (
            bs.data.Split(x[some], y[some], np.flatnonzero(some))
            for some in (fold_of != fold, fold_of == fold)
        )
        for arm in ARMS:
            folder = options.out / "runs" / arm / str(fold)
            if not _finished(folder):
                recipe = _recipe(arm, fold, options.epochs)
                bs.fit(recipe, folder, train=rest, test=left_out, force=True, report=False)
            found[arm].append(_measured(folder, sets.test))
            figures = ", ".join(f"{k} {100 * v:.1f} %" for k, v in found[arm][-1].items())
            print(f"fold {fold}, {arm}: {figures}", flush=True)
    stored = {"folds": options.folds, "epochs": options.epochs, "arms": found}
    (options.out / "folds.json").write_text(json.dumps(stored, indent=1) + "\n")
    print(f"\n{len(y)} recordings, {options.folds} folds, {options.epochs} epochs", end="")
    print(f", torch {torch.__version__}\n\n{_table(found)}")


def _recipe(arm: str, fold: int, epochs: int) -> bs.Recipe:
    p, readout = ARMS[arm]
    surrogate = Triangle() if p is None else Masked(Triangle(), p=p)
    changes = {"neuron.surrogate": surrogate, "readout": readout, "augment": (), "name": arm}
    return bs.recipes.get("digits-dvs").replace({**changes, "epochs": epochs, "seed": fold})


def _finished(folder: Path) -> bool:
    return (folder / "recipe.json").exists() and any(
        event.get("event") == "done" for event in Run.open(folder).log()
    )


def _measured(folder: Path, test: bs.data.Split) -> dict[str, float]:
    """Accuracies of the last epoch: in training, on the recordings left out, and on the 100."""
    events = Run.open(folder).log()
    done = next(e for e in events if e["event"] == "done")
    last = [e for e in events if e["event"] == "epoch"][-1]
    of_test = bs.evaluate(folder, test=test)["test_accuracy"]
    values = last["train_accuracy"], done["test_accuracy_last"], of_test
    return dict(zip(MEASURED, values, strict=True))


def _table(found: dict[str, list[dict[str, float]]]) -> str:
    head = [f"{name}, %" for name in MEASURED]
    lines = [
        f"| arm | {' | '.join(head)} | left out against the baseline, points [95 % CI] | p |",
        "|---|" + "---:|" * (len(MEASURED) + 2),
    ]
    beside = [run["left out"] for run in found["baseline"]]
    for arm, runs in found.items():
        means = " | ".join(_mean([run[name] for run in runs]) for name in MEASURED)
        difference, p = "–", "–"
        if arm != "baseline":
            d = paired([run["left out"] for run in runs], beside)
            difference = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            p = f"{d.p:.3f}"
        lines.append(f"| {arm} | {means} | {difference} | {p} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    main()
