"""Trained on simulated recordings, tested on real ones: what the simulated camera is worth to a network.

    python benchmarks/simulated_to_real.py [--root DATA] [--epochs 8] [--out DIR]

The network of the recipe digits-dvs learns from 5,000 recordings of mnist-dvs, without the digits that N-MNIST's training part
here holds, and is tested on 2,000 of mnist-dvs and on all real recordings, also with ON and OFF exchanged. The last epoch
counts. Needs MNIST and (part of) N-MNIST under BACKSPIKE_DATA; the first call simulates mnist-dvs.
"""

import argparse
from pathlib import Path

import numpy as np

import backspike as bs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of the data (default: BACKSPIKE_DATA, then ./data, ../shared/data)",
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/simulated-to-real"))
    given = parser.parse_args()
    simulated = bs.data.load("mnist-dvs", given.root, T=10, size=17, limit=5000)
    real = bs.data.load("nmnist", given.root, T=10, size=17)
    shown = (
        np.concatenate([real.train.ids, real.validation.ids]) - 1
    )  # N-MNIST numbers MNIST's digits from 1
    train = simulated.train.take(np.flatnonzero(~np.isin(simulated.train.ids, shown)))
    parts = (real.train, real.validation, real.test)
    x, y, ids = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("x", "y", "ids")
    )
    tests = {
        "simulated": simulated.test.take(np.arange(2000)),
        "real": bs.data.Split(x, y, ids),
        "real, ON and OFF exchanged": bs.data.Split(x[:, :, ::-1].copy(), y, ids),
    }
    recipe = bs.recipes.get("digits-dvs").replace({"epochs": given.epochs})
    bs.fit(recipe, given.out, train=train, force=True, report=False)
    print(f"trained on {len(train):,} simulated recordings, {given.epochs} epochs")
    for name, test in tests.items():
        print(
            f"{name}: {100 * bs.evaluate(given.out, test=test)['test_accuracy']:.1f} % of {len(test):,}"
        )


if __name__ == "__main__":
    main()
