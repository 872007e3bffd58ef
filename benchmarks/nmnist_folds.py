"""Do MSG and TWO help where event data are few? Cross-validation on 1,000 real N-MNIST recordings.

    python benchmarks/nmnist_folds.py [--folds 10] [--epochs 20] [--out DIR]

Each fold leaves out a part of the training recordings, trains every arm on the rest, and tests on
the part left out and on the 100 test recordings. The last epoch counts: nothing is chosen by what
is tested. Runs that are finished are not repeated, so the command continues after a stop.
`DIR/folds.json` gets all figures, and the table is printed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import backspike as bs
from backspike import Masked, Triangle
from backspike.recipes.values import TWO, Mean
from backspike.run import Run
from backspike.study.spec import Job, finished
from backspike.study.statistics import difference_cell, p_value, paired, percent
from backspike.system.files import to_json, write_atomic
from backspike.system.table import Table, left, right

ARMS = {
    "baseline": (None, Mean()),
    "TWO": (None, TWO(start_epoch=1)),
    "MSG p=0.25": (0.25, Mean()),
    "MSG p=0.5": (0.5, Mean()),
    "MSG p=0.75": (0.75, Mean()),
    "MSG p=0.5 + TWO": (0.5, TWO(start_epoch=1)),
}
MEASURED = ("training", "left out", "test")


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
            recipe = _recipe(arm, fold, options.epochs)
            job = Job(arm, fold, recipe, options.out / "runs" / arm / str(fold))
            if not finished(job):
                bs.fit(recipe, job.folder, train=rest, test=left_out, force=True, report=False)
            found[arm].append(_measured(Run.open(job.folder), sets.test))
            figures = ", ".join(f"{k} {100 * v:.1f} %" for k, v in found[arm][-1].items())
            print(f"fold {fold}, {arm}: {figures}", flush=True)
    stored = {"folds": options.folds, "epochs": options.epochs, "arms": found}
    write_atomic(options.out / "folds.json", to_json(stored))
    print(f"\n{len(y)} recordings, {options.folds} folds, {options.epochs} epochs", end="")
    print(f", torch {torch.__version__}\n\n{_table(found).to_markdown()}")


def _recipe(arm: str, fold: int, epochs: int) -> bs.Recipe:
    p, readout = ARMS[arm]
    surrogate = Triangle() if p is None else Masked(Triangle(), p=p)
    changes = {"neuron.surrogate": surrogate, "readout": readout, "augment": (), "name": arm}
    return bs.recipes.get("digits-dvs").replace({**changes, "epochs": epochs, "seed": fold})


def _measured(run: Run, test: bs.data.Split) -> dict[str, float]:
    """Accuracies after the last epoch: in training, on the recordings left out, and on the test."""
    last = [event for event in run.log() if event["event"] == "epoch"][-1]
    of_test = bs.evaluate(run.path, test=test)["test_accuracy"]
    values = last["train_accuracy"], run.done()["test_accuracy_last"], of_test
    return dict(zip(MEASURED, values, strict=True))


def _table(found: dict[str, list[dict[str, float]]]) -> Table:
    columns = left("arm") + right(*(f"{name}, %" for name in MEASURED))
    columns += right("left out against the baseline, points [95 % CI]", "p")
    rows = []
    for arm, runs in found.items():
        d = paired(*([run["left out"] for run in found[name]] for name in (arm, "baseline")))
        differs = (difference_cell(d._asdict()), p_value(d.p)) if arm != "baseline" else ("–", "–")
        means = (_mean([run[name] for run in runs]) for name in MEASURED)
        rows.append((arm, *means, *differs))
    return Table(columns, rows)


def _mean(values: list[float]) -> str:
    return f"{percent(np.mean(values), 1)} ± {percent(np.std(values, ddof=1), 1)}"


if __name__ == "__main__":
    main()
