"""Data sets in memory: a split is a pair of arrays, a data set three splits.

A `Split` has `len` and indexing, which is all that a PyTorch DataLoader asks for, and its arrays are open to those who
batch for themselves. `stratified_order` is the one rule behind every split and subset that backspike makes itself.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError

PUBLISHED = Path(__file__).with_name("splits")


@dataclass(frozen=True, eq=False)
class Split:
    """N samples: `split[i]` is `(x, y)`, a copy of the sample and its class.

    `x`: unsigned integers, images [N, C, H, W] in 0..255 or event counts [N, T, 2, H, W] (channel 0 OFF, 1 ON) or
    [N, T, channels], possibly memory-mapped (copy on write: changing it changes no file); where a set is too large for
    memory, `Pictures` decoded when they are asked for. `y`: int64 [N]. `ids`: int64 [N], the numbers of the samples in the
    official files (within their class where files are so numbered): they publish the split.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise DataError(
                f"a split of {len(self.x)} samples, {len(self.y)} labels and {len(self.ids)} ids"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.array(self.x[i]), int(self.y[i])

    def take(self, indices: np.ndarray) -> "Split":
        """The split of the samples at `indices`."""
        return Split(self.x[indices], self.y[indices], self.ids[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set. `note` says what a result on it must say (for instance "simulated"), `credit` whom to cite."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    events: bool
    note: str
    credit: str

    def limited(self, n: int) -> "Splits":
        """The same with only the first n training samples of the stratified order (seed 0); all where there are fewer."""
        if n < 1:
            raise DataError(f"limit={n}: at least one training sample is needed")
        return replace(
            self, train=self.train.take(np.sort(stratified_order(self.train.y, seed=0)[:n]))
        )


def stratified_order(y: np.ndarray, seed: int) -> np.ndarray:
    """A fixed shuffled order of the samples, every beginning of which has the classes in proportion. int64 [N] -> int64 [N].

    Sample r of the n_c samples of a class, in the order of random keys, comes at (r + 1/2) / n_c; ties by class. The keys
    are the raw output of PCG64, which NumPy keeps the same in all versions.
    """
    keys = np.random.PCG64(seed).random_raw(len(y))
    place = np.empty(len(y))
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        place[members[np.argsort(keys[members], kind="stable")]] = (
            np.arange(len(members)) + 0.5
        ) / len(members)
    return np.lexsort((y, place))


def published(name: str) -> dict[str, tuple[range, range, range]]:
    """Which numbers of the data set `name` train, validate and test, by class (or user), in the order of the labels.

    From `data/splits/<name>.txt`: in each line a class and three ranges, both ends included.
    """
    out = {}
    for line in (PUBLISHED / f"{name}.txt").read_text("ascii").splitlines():
        if not line.startswith("#"):
            category, *ranges = line.split()
            train, validation, test = (tuple(map(int, text.split("-"))) for text in ranges)
            out[category] = (
                range(train[0], train[1] + 1),
                range(validation[0], validation[1] + 1),
                range(test[0], test[1] + 1),
            )
    return out


def carve(y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, validation), each increasing: the first n of the stratified order (seed 0) are for validation."""
    order = stratified_order(y, seed=0)
    return np.sort(order[n:]), np.sort(order[:n])
