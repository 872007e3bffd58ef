"""Images shown in sequence: MNIST by pixels or by rows, permuted MNIST, CIFAR-10 by columns.

uint8 [N, T, values], with the files and the split of the images. T chooses the order: for `smnist`
784 pixels row by row (Le, Jaitly, Hinton 2015, arXiv:1504.00941) or 28 rows, from top to bottom;
for `psmnist` the 784 pixels in one fixed random order (the same paper), or 28 of that order at a
timestep; for `scifar10` the 32 columns from left to right, with 3 * 32 values each, red, green,
blue from top to bottom (Fang et al. 2023, arXiv:2304.12760), or 1,024 pixels row by row, with 3
values each.
Only the fixed random order is a copy of the images in memory, the others are views.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...errors import DataError
from ..source import Parts, Place, Source
from .cifar import CIFAR10
from .mnist import MNIST

# images [N, C, H, W] -> [N, T, values]
Order = Callable[[np.ndarray], np.ndarray]


def rows(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, H, C * W]"""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)


def columns(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, W, C * H]"""
    return x.transpose(0, 3, 1, 2).reshape(len(x), x.shape[3], -1)


def pixels(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, H * W, C], row by row."""
    return x.reshape(*x.shape[:2], -1).swapaxes(1, 2)


def permutation(n: int, seed: int = 0) -> np.ndarray:
    """A fixed random order of 0 ... n - 1, int64 [n].

    It sorts the raw output of PCG64, which is the same in all versions of NumPy.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(n), kind="stable")


def permuted(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, H * W, C], in the order of `permutation`."""
    return pixels(x)[:, permutation(x.shape[2] * x.shape[3])]


def permuted_rows(x: np.ndarray) -> np.ndarray:
    """[N, C, H, W] -> [N, H, W * C], the pixels in the order of `permuted`."""
    return permuted(x).reshape(len(x), x.shape[2], -1)


@dataclass(frozen=True)
class Sequences:
    """Reads `images` in sequence. orders: by number of timesteps; the first is the default."""

    images: Source
    orders: Mapping[int, Order]

    def __call__(self, source: Source, place: Place, T: int | None) -> Parts:
        """The three parts. Raises DataError for a T without an order."""
        order = self.orders.get(next(iter(self.orders)) if T is None else T)
        if order is None:
            choices = " or ".join(f"{n} ({f.__name__})" for n, f in self.orders.items())
            raise DataError(f"T={T}: {source.name} has T = {choices}")
        train, validation, test = (
            replace(part, x=order(part.x), pixels=True)
            for part in self.images.read(self.images, place)
        )
        return train, validation, test


def _sequential(images: Source, name: str, orders: Mapping[int, Order]) -> Source:
    return replace(
        images,
        name=name,
        kind="sequences",
        read=Sequences(images, orders),
        options={"T": None},
        note=f"the files of {images.name}",
    )


SMNIST = _sequential(MNIST, "smnist", {784: pixels, 28: rows})
PSMNIST = _sequential(MNIST, "psmnist", {784: permuted, 28: permuted_rows})
SCIFAR10 = _sequential(CIFAR10, "scifar10", {32: columns, 1024: pixels})
