"""Picture folders, `train/<class>/*.JPEG` and `val/<class>/*.JPEG`: ImageNet and similar sets.

These sets do not fit into memory: a split lists its files, and pictures are decoded on access. The
official validation set is the test set, as in the literature; validation samples are split off the
training set by `split.carve`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import DataError
from .formats import picture, read_file
from .frames import Pixels
from .source import Parts, Place, Source
from .split import Split

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
DEFAULT_SIZE = 224


@dataclass(frozen=True, eq=False)
class Pictures:
    """Acts like an array uint8 [N, 3, size, size] of N files, decoded on access.

    `pictures[i]` decodes one picture; slices and index arrays select some without decoding.
    names: bytes, `<class>/<file>` in `folder`; a million of them take tens of megabytes.
    part: maps width and height to the part of a picture that is decoded, see `picture.decode`.
    """

    folder: Path
    names: np.ndarray
    size: int
    part: Callable[[int, int], picture.Box] = picture.middle

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, size, size)"""
        return len(self.names), 3, self.size, self.size

    @property
    def nbytes(self) -> int:
        """The size in bytes of all pictures, decoded."""
        return len(self) * 3 * self.size**2

    def __repr__(self) -> str:
        return f"Pictures({len(self):,} files in {str(self.folder)!r}, size={self.size})"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: "int | slice | np.ndarray") -> "np.ndarray | Pictures":
        if not isinstance(index, int | np.integer):
            return replace(self, names=self.names[index])
        path = self.folder / os.fsdecode(self.names[index])
        return picture.decode(read_file(path), str(path), self.size, self.part)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise DataError(
            f"{len(self):,} pictures do not fit into memory: take single samples, "
            "as a DataLoader does"
        )


def read(source: Source, place: Place, size: Pixels | None = None) -> Parts:
    """The parts of a picture set. The classes are the folders in `train`, sorted by name.

    Raises DataError for an invalid size, an unknown class, and a part without pictures.
    """
    folder = place.folder
    size = DEFAULT_SIZE if size is None else size
    if not isinstance(size, int) or size < 1:
        raise DataError(f"size={size}: pictures are square, with a side of at least 1")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    found, test = _list(folder / "train", classes, size), _list(folder / "val", classes, size)
    rest, validation = source.carve(found.y)
    return found.take(rest), found.take(validation), test


def _list(folder: Path, classes: list[str], size: int) -> Split:
    others = {path.name for path in folder.iterdir() if path.is_dir()} - set(classes)
    if others:
        raise DataError(f"{folder}: class {min(others)} has no folder in train")
    names: list[bytes] = []
    labels: list[int] = []
    for label, category in enumerate(classes):
        if (folder / category).is_dir():
            files = sorted(
                name
                for name in os.listdir(folder / category)
                if os.path.splitext(name)[1].lower() in SUFFIXES
            )
            names += [os.fsencode(f"{category}/{name}") for name in files]
            labels += [label] * len(files)
    if not names:
        raise DataError(
            f"{folder}: no pictures <class>/<name>.JPEG; put each one into the folder of its class"
        )
    x = cast(np.ndarray, Pictures(folder, np.array(names), size))
    return Split(x, np.array(labels, np.int64), np.arange(len(names)))
