"""The simulated event camera beside the real one: N-MNIST's recordings, and MNIST's same digits before the simulated camera.

    python benchmarks/simulated_events.py [--root DATA] [--figure docs/simulated-events.svg]

Needs MNIST and (part of) N-MNIST under BACKSPIKE_DATA. Prints the tables of docs/simulated-events.md: for the recordings of
Train, on which the camera was calibrated, and of Test, on which it was not.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backspike import data
from backspike.data import Events, static
from backspike.data import simulated as simulated_sets
from backspike.data.formats import nmnist
from backspike.data.simulate import record
from backspike.data.sources import roots
from backspike.system.table import Table, left, right

BIN_US, BINS = 6_000, 52
SENSOR = 34


@dataclass(frozen=True)
class Statistics:
    """Of N recordings; one row each, but `rate`: events per millisecond [OFF or ON, bin], and `map`: events per pixel."""

    events: np.ndarray
    on: np.ndarray
    active: np.ndarray
    last: np.ndarray
    saccades: np.ndarray
    intervals: np.ndarray
    rate: np.ndarray
    map: np.ndarray

    @property
    def peak(self) -> float:
        return float(self.rate.sum(0).max())


def statistics(recordings: Iterable[Events]) -> Statistics:
    rows, intervals, rate, counts = [], [], np.zeros((2, BINS)), np.zeros(SENSOR**2)
    for e in recordings:
        pixel = e.y.astype(int) * SENSOR + e.x
        saccades = np.bincount(np.minimum(e.t // 105_000, 2), minlength=3)
        rows.append(
            [len(e), e.p.mean(), len(np.unique(pixel)) / SENSOR**2, e.t.max() / 1000, *saccades]
        )
        bins = np.minimum(e.t // BIN_US, BINS - 1)
        rate += np.stack([np.bincount(bins[e.p == p], minlength=BINS) for p in (0, 1)])
        counts += np.bincount(pixel, minlength=SENSOR**2)
        order = np.lexsort((e.t, pixel))
        same = (np.diff(pixel[order]) == 0) & (np.diff(e.p[order].astype(int)) == 0)
        intervals.append(np.diff(e.t[order])[same] / 1000)
    columns, n = np.array(rows).T, len(rows)
    return Statistics(
        *columns[:4],
        columns[4:].T,
        np.concatenate(intervals),
        rate / n / (BIN_US / 1000),
        (counts / n).reshape(SENSOR, SENSOR),
    )


def recordings(
    root: Path, part: str
) -> tuple[list[np.ndarray], np.ndarray, list[int], list[Events]]:
    """Images, labels, numbers and real recordings of the digits that N-MNIST's folder `part` holds."""
    mnist = data.load("mnist", root)
    splits = (mnist.test,) if part == "Test" else (mnist.train, mnist.validation)
    images = {int(id): x for split in splits for id, x in zip(split.ids, split.x)}
    paths = sorted((root / "NMNIST" / part).glob("*/*.bin"), key=lambda path: path.stem)
    ids = [int(path.stem) - 1 for path in paths]
    labels = np.array([int(path.parent.name) for path in paths])
    return (
        [images[i] for i in ids],
        labels,
        ids,
        [nmnist.decode(path.read_bytes(), str(path)) for path in paths],
    )


def table(real: Statistics, simulated: Statistics, same_images: bool = True) -> str:
    def spread(x: np.ndarray) -> str:
        return f"{x.mean():,.0f} ± {x.std():,.0f}"

    def quantiles(s: Statistics) -> str:
        return ", ".join(f"{q:.1f}" for q in np.quantile(s.intervals, (0.1, 0.25, 0.5, 0.75, 0.9)))

    def alike(a: np.ndarray, b: np.ndarray) -> str:
        return f"{np.corrcoef(a.ravel(), b.ravel())[0, 1]:.3f}"

    rows = [
        ("events", spread(real.events), spread(simulated.events)),
        ("events in 0-105, 105-210, 210- ms", *(", ".join(f"{n:,.0f}" for n in s.saccades.mean(0)) for s in (real, simulated))),
        ("last event, ms", *(f"{s.last.mean():.1f} ± {s.last.std():.1f}" for s in (real, simulated))),
        ("share of ON events", *(f"{s.on.mean():.4f}" for s in (real, simulated))),
        ("share of pixels ever active", *(f"{s.active.mean():.3f} ± {s.active.std():.3f}" for s in (real, simulated))),
        ("highest rate in 6 ms, events/ms", *(f"{s.peak:.1f}" for s in (real, simulated))),
        ("ms between events of a pixel and polarity, deciles 1, 2.5, 5, 7.5, 9", quantiles(real), quantiles(simulated)),
        *[("correlation: events of the same digit", "", alike(real.events, simulated.events)) for _ in range(same_images)],
        ("correlation: rate over time; of ON; of OFF", "", ", ".join(
            alike(a, b) for a, b in [(real.rate.sum(0), simulated.rate.sum(0)), *zip(real.rate[::-1], simulated.rate[::-1])])),
        ("correlation: events per pixel", "", alike(real.map, simulated.map)),
    ]  # fmt: skip
    return Table([*left(""), *right("N-MNIST", "simulated")], rows).to_markdown()


def by_digit(labels: np.ndarray, real: Statistics, simulated: Statistics) -> str:
    means = [[s.events[labels == k].mean() for k in range(10)] for s in (real, simulated)]
    rows = [[name, *row] for name, row in zip(("N-MNIST", "simulated"), means)]
    columns = [*left("digit"), *right(*range(10), format=lambda mean: f"{mean:,.0f}")]
    return Table(columns, rows).to_markdown()


def figure(path: Path, labels: np.ndarray, real: Statistics, simulated: Statistics) -> None:
    import matplotlib.pyplot as plt

    fig, (over_time, counts) = plt.subplots(
        1, 2, figsize=(10, 3.4), width_ratios=(2, 1), layout="constrained"
    )
    t = (np.arange(BINS) + 0.5) * BIN_US / 1000
    for p, name, colour in ((1, "ON", "tab:red"), (0, "OFF", "tab:blue")):
        over_time.plot(t, real.rate[p], color=colour, label=f"{name}, N-MNIST")
        over_time.plot(
            t, simulated.rate[p], color=colour, linestyle="--", label=f"{name}, simulated"
        )
    over_time.set(xlabel="time (ms)", ylabel="events per ms")
    over_time.legend(loc="upper center", ncols=2, fontsize="small")
    counts.scatter(real.events, simulated.events, s=4, c=labels, cmap="tab10", rasterized=True)
    counts.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    counts.set(xlabel="events, N-MNIST", ylabel="events, simulated")
    fig.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"figure in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of the data (default: BACKSPIKE_DATA, then ./data, ../shared/data)",
    )
    parser.add_argument("--figure", type=Path, help="write the figure here")
    given = parser.parse_args()
    places = roots(given.root)
    root = next((place for place in places if (place / "NMNIST").is_dir()), None)
    if root is None:
        raise SystemExit(f"no NMNIST in {' or '.join(map(str, places))}; set BACKSPIKE_DATA")
    for part in ("Train", "Test"):
        images, labels, ids, events = recordings(root, part)
        seed = 2 if part == "Test" else 0  # as in mnist-dvs
        real, simulated = (
            statistics(events),
            statistics(record(x, seed, i) for x, i in zip(images, ids)),
        )
        print(
            f"\n{part}: {len(ids)} recordings\n\n{table(real, simulated)}\n\n{by_digit(labels, real, simulated)}"
        )
        if part == "Train" and given.figure:
            figure(given.figure, labels, real, simulated)
        if part == "Train":
            images = list(
                np.pad(
                    np.concatenate([split.x for split in static.digits()]),
                    ((0, 0), (0, 0), (1, 1), (1, 1)),
                )
            )
            camera = simulated_sets.SETS["digits-dvs"].camera
            digits = statistics(record(x, 0, i, camera) for i, x in enumerate(images))
            print(f"\ndigits-dvs beside it\n\n{table(real, digits, same_images=False)}")


if __name__ == "__main__":
    main()
