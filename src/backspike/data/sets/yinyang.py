"""Yin-Yang: points (x, y) in a disc with the classes yin, yang and dot, as the times of spikes.

L. Kriener, J. Goeltz, M. A. Petrovici 2022, doi:10.1145/3517343.3517380. The files have the values
x, y, 1 - x and 1 - y between 0 and 1; as in the paper, each is the time of the only spike of an
input: value v spikes at timestep round(v * (T - 1)). uint8 [N, T, 4].
"""

from pathlib import Path

import numpy as np

from ...errors import DataError
from ..formats import npy
from ..source import File, Layout, Parts, Place, Source
from ..split import Split

DEFAULT_T = 50


def _read(source: Source, place: Place, T: int | None) -> Parts:
    T = DEFAULT_T if T is None else T
    if T < 2:
        raise DataError(f"T={T}: values become spike times, so T must be at least 2")
    arrays = [(path, npy.decode(data, str(path))) for path, data in place.contents()]
    train, validation, test = (
        _split(source, *values, *labels, T) for values, labels in zip(arrays[::2], arrays[1::2])
    )
    return train, validation, test


def _split(
    source: Source, path: Path, values: np.ndarray, labelled: Path, labels: np.ndarray, T: int
) -> Split:
    inputs = source.shape[-1]
    if values.dtype.kind != "f" or values.ndim != 2 or values.shape[1] != inputs:
        raise DataError(f"{path}: {values.dtype} {values.shape} instead of {inputs} values a point")
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"{path}: has values outside 0 ... 1")
    if labels.dtype.kind not in "iu" or labels.shape != values.shape[:1]:
        raise DataError(
            f"{labelled}: {labels.dtype} {labels.shape} instead of {len(values)} labels"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < source.num_classes:
        raise DataError(f"{labelled}: has labels outside 0 ... {source.num_classes - 1}")
    return Split(spike_times(values, T), labels.astype(np.int64), np.arange(len(labels)))


def spike_times(values: np.ndarray, T: int) -> np.ndarray:
    """[N, inputs] in 0..1 -> uint8 [N, T, inputs], one spike for each value."""
    times = np.rint(values * (T - 1)).astype(np.intp)
    return (times[:, None] == np.arange(T)[:, None]).astype(np.uint8)


def _file(name: str, size: int, md5: str) -> File:
    base = "https://raw.githubusercontent.com/lkriener/yin_yang_data_set/master/publication_data"
    return File(name, size, md5, urls=(f"{base}/{name}",))


YINYANG = Source(
    name="yinyang",
    kind="events",
    samples=(5000, 1000, 1000),
    num_classes=3,
    shape=(1, 1, 4),
    credit="L. Kriener, J. Goeltz, M. A. Petrovici 2022, MIT licence",
    licence="MIT",
    home="https://github.com/lkriener/yin_yang_data_set",
    read=_read,
    layouts=(
        Layout(
            ("yinyang", "yin_yang_data_set/publication_data", "publication_data", ""),
            (
                _file("train_samples.npy", 160128, "3fae7547e219eb404ccff4a25b22b222"),
                _file("train_labels.npy", 40128, "7c2308419fa155778745d0bb5e25c6d8"),
                _file("validation_samples.npy", 32128, "cea596192f395311c3f998e1e850023f"),
                _file("validation_labels.npy", 8128, "06b2b61e504f5ce15a41bee3ec9372fc"),
                _file("test_samples.npy", 32128, "b19247a98a2c785f761fa96bb76cbc8e"),
                _file("test_labels.npy", 8128, "eac8c29460f0e17fffa75cb645c05d93"),
            ),
        ),
    ),
    options={"T": None},
)
