"""CIFAR-10 and CIFAR-100; CIFAR-10 recorded by the simulated event camera."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ..formats import image_batch
from ..images import Images, Labelled
from ..simulate import Camera
from ..simulated import simulated
from ..source import Archive, File, Layout, Source

_HOME = "https://www.cs.toronto.edu/~kriz"
_CIFAR10 = Archive(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    (f"{_HOME}/cifar-10-python.tar.gz",),
    170498071,
)
_CIFAR100 = Archive(
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    (f"{_HOME}/cifar-100-python.tar.gz",),
    169001437,
)


def _decode(files: Sequence[tuple[Path, bytes]], label_bytes: int = 1) -> tuple[Labelled, Labelled]:
    *batches, test = (
        image_batch.decode_binary(data, str(path), label_bytes)
        if path.suffix == ".bin"
        else image_batch.decode_pickle(data, str(path))
        for path, data in files
    )
    x, y = (np.concatenate(arrays) for arrays in zip(*batches))
    return (x, y), test


CIFAR10 = Source(
    name="cifar10",
    kind="images",
    samples=(45000, 5000, 10000),
    num_classes=10,
    shape=(3, 32, 32),
    credit="A. Krizhevsky 2009",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    read=Images(_decode),
    layouts=(
        Layout(
            ("cifar-10-batches-py", ""),
            (
                File(
                    "data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f", archive=_CIFAR10
                ),
                File(
                    "data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec", archive=_CIFAR10
                ),
                File(
                    "data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751", archive=_CIFAR10
                ),
                File(
                    "data_batch_4", 31035696, "634d18415352ddfa80567beed471001a", archive=_CIFAR10
                ),
                File(
                    "data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb", archive=_CIFAR10
                ),
                File("test_batch", 31035526, "40351d587109b95175f43aff81a1287e", archive=_CIFAR10),
            ),
        ),
        Layout(
            ("cifar-10-batches-bin", ""),
            (
                *(File(f"data_batch_{i}.bin", 30730000) for i in range(1, 6)),
                File("test_batch.bin", 30730000),
            ),
        ),
    ),
)
CIFAR100 = replace(
    CIFAR10,
    name="cifar100",
    num_classes=100,
    read=Images(partial(_decode, label_bytes=2)),
    layouts=(
        Layout(
            ("cifar-100-python", ""),
            (
                File("train", None, "16019d7e3df5f24257cddd939b257f8d", archive=_CIFAR100),
                File("test", None, "f0ef6b0ae62326f3e7ffdfab6717acfc", archive=_CIFAR100),
            ),
        ),
        Layout(
            ("cifar-100-binary", ""), (File("train.bin", 153700000), File("test.bin", 30740000))
        ),
    ),
)
CIFAR10_DVS_SIMULATED = simulated(
    CIFAR10,
    Camera(size=48, side=42.0, negative=False, threshold=0.15),
    "cifar10-dvs-simulated",
    "the files of cifar10; these are not the recordings of DVS-CIFAR10",
)
