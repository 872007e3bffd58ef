"""Image sets that fit into memory, as uint8 [N, C, H, W].

Official test sets are unchanged. Validation samples are split off the official training set by
`split.carve`: the first 5,000 of its stratified order (the same share if there are fewer samples).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .source import Parts, Place, Source
from .split import Split

# images and labels
Labelled = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Images:
    """Reads a set. decode: (path, content) of all files -> training and test images and labels."""

    decode: Callable[[Sequence[tuple[Path, bytes]]], tuple[Labelled, Labelled]]

    def __call__(self, source: Source, place: Place) -> Parts:
        """The three parts. Raises DataError for files that do not belong together."""
        files = list(place.contents())
        both = zip((files[0], files[-1]), self.decode(files))
        train, test = (_split(source, path, x, y) for (path, _), (x, y) in both)
        rest, validation = source.carve(train.y)
        return train.take(rest), train.take(validation), test


def _split(source: Source, path: Path, x: np.ndarray, y: np.ndarray) -> Split:
    if x.dtype != np.uint8 or x.shape[1:] != source.shape or y.shape != x.shape[:1]:
        raise DataError(
            f"{path}: images {x.dtype} {x.shape} with labels {y.shape} are not those of "
            f"{source.name}"
        )
    if len(y) and not 0 <= y.min() <= y.max() < source.num_classes:
        raise DataError(f"{path}: label {y.max()} in a set of {source.num_classes} classes")
    return Split(x, y.astype(np.int64), np.arange(len(y)))
