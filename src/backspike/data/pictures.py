"""Folders of pictures, `train/<class>/*.JPEG` and `val/<class>/*.JPEG`: ImageNet, and any set that lies like it.

Too large to hold: a split lists its files, and a picture is decoded when it is asked for. The official validation set is the
test set, as everywhere in the literature; validation is carved out of the training set by `split.carve`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ..errors import DataError
from .formats import picture
from .frames import Pixels
from .source import Parts, Place, Source
from .split import Split

SUFFIXES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
DEFAULT_SIZE = 224


@dataclass(frozen=True, eq=False)
class Pictures:
    """Stands for the array uint8 [N, 3, size, size] of N files: `pictures[i]` decodes one, other indices choose some.

    `names`: bytes, `<class>/<file>` in `folder`; a million of them take tens of megabytes.
    """

    folder: Path
    names: np.ndarray
    size: int
    part: Callable[[int, int], picture.Box] = (
        picture.middle
    )  # of each picture, by its width and height; see picture.decode

    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), 3, self.size, self.size

    @property
    def nbytes(self) -> int:
        """What all of them would take, decoded."""
        return len(self) * 3 * self.size**2

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: "int | slice | np.ndarray") -> "np.ndarray | Pictures":
        if not isinstance(index, int | np.integer):
            return replace(self, names=self.names[index])
        path = self.folder / os.fsdecode(self.names[index])
        try:
            return picture.decode(path.read_bytes(), str(path), self.size, self.part)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise DataError(
            f"{len(self):,} pictures do not go into memory: take samples one by one, as a DataLoader does"
        )


def read(source: Source, place: Place, size: Pixels | None = None) -> Parts:
    """The parts of a set of pictures; the classes are the folders in `train`, sorted by name."""
    folder = place.folder
    size = DEFAULT_SIZE if size is None else size
    if not isinstance(size, int) or size < 1:
        raise DataError(f"size={size}: pictures are square, with a side from 1")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    found, test = _listed(folder / "train", classes, size), _listed(folder / "val", classes, size)
    rest, validation = source.carve(found.y)
    return found.take(rest), found.take(validation), test


def _listed(folder: Path, classes: list[str], size: int) -> Split:
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
            f"{folder}: no pictures <class>/<name>.JPEG; put each into the folder of its class"
        )
    x = cast(np.ndarray, Pictures(folder, np.array(names), size))
    return Split(x, np.array(labels, np.int64), np.arange(len(names)))
