"""Splits: a `Split` is a pair of arrays, a data set is three of them (`Splits`).

A `Split` has `len` and indexing, which is all that a PyTorch DataLoader needs; its arrays are
public for those who batch themselves. `stratified_order` is the only rule behind every split and
subset that backspike creates.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError

PUBLISHED = Path(__file__).with_name("splits")


@dataclass(frozen=True, eq=False)
class Split:
    """N samples: `split[i]` is `(x, y)`, a copy of the sample and its class number.

    x: unsigned integers, images [N, C, H, W] in 0..255, event counts [N, T, 2, H, W] (channel 0
    OFF, 1 ON) or [N, T, channels], or the pixels of images in sequence, [N, T, values] in 0..255.
    May be memory-mapped (copy-on-write: changing it changes no file), or `Pictures`, decoded on
    access.
    y: int64 [N]. ids: int64 [N], the numbers of the samples in the official files (within their
    class if files are numbered so); they publish the split.
    pixels: whether x are pixels in sequence, which batches divide by 255, as they do for images.
    Raises DataError if the three lengths differ.
    """

    x: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    pixels: bool = False

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.ids):
            raise DataError(
                f"a split of {len(self.x)} samples, {len(self.y)} labels and {len(self.ids)} ids"
            )

    def __repr__(self) -> str:
        classes = len(np.unique(self.y))
        return f"Split({len(self):,} samples of {_shape(self)}, {classes} classes)"

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.array(self.x[i]), int(self.y[i])

    def take(self, indices: np.ndarray) -> "Split":
        """The samples at `indices`."""
        return replace(self, x=self.x[indices], y=self.y[indices], ids=self.ids[indices])


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set.

    events: whether samples are event counts. note: what every result must mention (such as
    "simulated"). credit: whom to cite. classes: their names; empty if they are numbers.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    events: bool
    note: str
    credit: str
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        parts = ("train", "validation", "test")
        sizes = ", ".join(f"{part} {len(getattr(self, part)):,}" for part in parts)
        note = f", {self.note}" if self.note else ""
        shape = _shape(self.train)
        return (
            f"Splits({self.name!r}: {sizes} samples of {shape}, {self.num_classes} classes{note})"
        )

    def limited(self, n: int) -> "Splits":
        """The same with only the first n training samples of the stratified order (seed 0).

        All of them if there are fewer. Raises DataError for n below 1.
        """
        if n < 1:
            raise DataError(f"limit={n}: at least one training sample is needed")
        first = np.sort(stratified_order(self.train.y, seed=0)[:n])
        return replace(self, train=self.train.take(first))


def _shape(split: Split) -> str:
    return f"{split.x.dtype} {list(split.x.shape[1:])}"


def stratified_order(y: np.ndarray, seed: int) -> np.ndarray:
    """A fixed shuffled order in which every prefix has the classes in proportion.

    int64 [N] -> int64 [N]. Sample r of the n_c samples of a class, in the order of random keys, is
    placed at (r + 1/2) / n_c; ties are broken by class. The keys are the raw output of PCG64, which
    is the same in all versions of NumPy.
    """
    keys = np.random.PCG64(seed).random_raw(len(y))
    place = np.empty(len(y))
    for c in np.unique(y):
        members = np.flatnonzero(y == c)
        ranks = np.arange(len(members)) + 0.5
        place[members[np.argsort(keys[members], kind="stable")]] = ranks / len(members)
    return np.lexsort((y, place))


def published(name: str) -> dict[str, tuple[range, range, range]]:
    """The published split of data set `name`: class (or user) -> sample numbers of each part.

    Read from `data/splits/<name>.txt`; a line has a class and its train, validation and test
    ranges, both ends included. Classes are in the order of the labels.
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
    """Splits off n validation samples: indices (train, validation), both increasing.

    Validation gets the first n of the stratified order (seed 0).
    """
    order = stratified_order(y, seed=0)
    return np.sort(order[n:]), np.sort(order[:n])
