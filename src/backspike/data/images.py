"""Image sets that fit into memory, as uint8 [N, C, H, W].

The official test sets are left as they are; validation is carved out of the official training set
by `split.carve`: the first 5,000 of its stratified order (the same share of a file with fewer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .source import Parts, Place, Source
from .split import Split

Labelled = tuple[np.ndarray, np.ndarray]  # images and labels


@dataclass(frozen=True)
class Images:
    """Reads a set; `decode` makes images and labels of the files, for training and for the test."""

    decode: Callable[[Sequence[tuple[Path, bytes]]], tuple[Labelled, Labelled]]

    def __call__(self, source: Source, place: Place) -> Parts:
        """Raises DataError for files that do not belong together."""
        files = list(place.contents())
        both = zip((files[0], files[-1]), self.decode(files))
        train, test = (_split(source, path, x, y) for (path, _), (x, y) in both)
        rest, validation = source.carve(train.y)
        return train.take(rest), train.take(validation), test


def _split(source: Source, path: Path, x: np.ndarray, y: np.ndarray) -> Split:
    if x.dtype != np.uint8 or x.shape[1:] != source.shape or y.shape != x.shape[:1]:
        raise DataError(
            f"{path}: images {x.dtype} {x.shape} and labels {y.shape} are not {source.name}'s"
        )
    if len(y) and not 0 <= y.min() <= y.max() < source.num_classes:
        raise DataError(f"{path}: label {y.max()} in a set of {source.num_classes} classes")
    return Split(x, y.astype(np.int64), np.arange(len(y)))
