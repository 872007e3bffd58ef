"""Still images: digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 as uint8 [N, C, H, W].

The official test sets are left as they are; validation is carved out of the official training set by `split.carve`: the
first 5,000 of its stratified order (the same share of a file that holds fewer). The bundled digits come with
their split, made by the same order over all 1,797: 360 for the test, then 180 for validation, then the rest.
"""

from pathlib import Path

import numpy as np

from ..errors import DataError
from .formats import cifar, idx
from .sources import Layout, Source, read
from .split import Split, carve

DIGITS = Path(__file__).with_name("digits.npz")


def digits() -> tuple[Split, Split, Split]:
    """Train, validation and test of the UCI handwritten digits, [N, 1, 8, 8], grey values 0..16 scaled to 0..255."""
    with np.load(DIGITS) as bundle:
        x = (bundle["x"].astype(np.uint16)[:, None] * 255 // 16).astype(np.uint8)
        whole = Split(x, bundle["y"].astype(np.int64), np.arange(len(x)))
        train, validation, test = (
            whole.take(np.flatnonzero(bundle["split"] == part)) for part in range(3)
        )
    return train, validation, test


def load(source: Source, folder: Path, layout: Layout) -> tuple[Split, Split, Split]:
    """Train, validation and test of the data set in `folder`. Raises DataError for files that do not belong together."""
    pairs = [(folder / file.name, file) for file in layout.files]
    if source.name in ("mnist", "fashion-mnist"):
        x, y, test_x, test_y = (idx.decode(read(path, file), str(path)) for path, file in pairs)
        x, test_x = (
            images.reshape(*images.shape[:1], 1, *images.shape[1:]) for images in (x, test_x)
        )
    else:
        *batches, (test_x, test_y) = (
            _cifar(path, read(path, file), source.num_classes) for path, file in pairs
        )
        x, y = (np.concatenate(arrays) for arrays in zip(*batches))
    train, test = (
        _checked(source, pairs[0][0], x, y),
        _checked(source, pairs[-1][0], test_x, test_y),
    )
    rest, validation = carve(train.y, source.validation_of(len(train)))
    return train.take(rest), train.take(validation), test


def _cifar(path: Path, data: bytes, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    if path.suffix == ".bin":
        return cifar.decode_binary(data, str(path), label_bytes=2 if num_classes == 100 else 1)
    return cifar.decode_python(data, str(path))


def _checked(source: Source, path: Path, x: np.ndarray, y: np.ndarray) -> Split:
    if x.dtype != np.uint8 or x.shape[1:] != source.shape or y.shape != x.shape[:1]:
        raise DataError(
            f"{path}: images {x.dtype} {x.shape} and labels {y.shape} are not {source.name}'s"
        )
    if len(y) and not 0 <= y.min() <= y.max() < source.num_classes:
        raise DataError(f"{path}: label {y.max()} in a set of {source.num_classes} classes")
    return Split(x, y.astype(np.int64), np.arange(len(y)))
