"""Shared by the tests: parts of what was in test_recipes.py."""

import pickle
import wave

import numpy as np
import pytest

from backspike import data

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def cifar(folder, files, labels, classes, n=20):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for file in files:
        batch = {
            b"data": rng.integers(0, 256, (n, 3072), np.uint8),
            labels: [i % classes for i in range(n)],
        }
        (folder / file).write_bytes(pickle.dumps(batch, 4))


def yinyang(folder, n=30):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part in ("train", "validation", "test"):
        points = rng.random((n, 2))
        np.save(folder / f"{part}_samples.npy", np.hstack([points, 1 - points]))
        np.save(folder / f"{part}_labels.npy", np.arange(n) % 3)


def spoken_digits(folder, numbers=(0, 1)):
    """A tone for each digit of each speaker, longer for each number."""
    folder.mkdir(parents=True)
    for who, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            for number in numbers:
                t = np.arange(2000 + 500 * number) / 8000
                tone = 8000 * np.sin(2 * np.pi * (200 + 150 * digit + 10 * who) * t)
                with wave.open(str(folder / f"{digit}_{speaker}_{number}.wav"), "wb") as file:
                    file.setparams((1, 2, 8000, len(t), "NONE", ""))
                    file.writeframes(tone.astype("<i2").tobytes())


def put(name, root):
    """A few samples of a data set, where its official files belong."""
    if name in ("mnist", "smnist", "psmnist"):
        from helpers.datasets import fake_mnist

        fake_mnist(root / "MNIST" / "raw")
    elif name == "nmnist":
        from helpers.datasets import fake_nmnist

        fake_nmnist(root / "NMNIST")
    elif name in ("cifar10", "scifar10"):
        cifar(
            root / "cifar-10-batches-py",
            [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
            b"labels",
            10,
        )
    elif name == "cifar100":
        cifar(root / "cifar-100-python", ["train", "test"], b"fine_labels", 100, n=200)
    elif name == "dvs-cifar10":
        from helpers.recordings import dvs_cifar10

        dvs_cifar10(root / "DVS-CIFAR10", numbers=(0, 810, 900))
    elif name == "n-caltech101":
        from helpers.recordings import n_caltech101

        n_caltech101(root / "N-Caltech101" / "Caltech101")
    elif name == "dvs128-gesture":
        from helpers.recordings import gestures

        gestures(root / "DvsGesture")
    elif name == "imagenet":
        pytest.importorskip("PIL")
        from helpers.pictures import imagenet

        imagenet(root / "ImageNet", n=20)
    elif name == "shd":
        pytest.importorskip("h5py")
        from helpers.recordings import spoken

        for part, n in (("train", 40), ("test", 20)):
            spoken(root / "SHD", "shd", part, n, 20)
    elif name == "ssc":
        pytest.importorskip("h5py")
        from helpers.recordings import spoken

        for part, n in (("train", 70), ("valid", 35), ("test", 36)):
            spoken(root / "SSC", "ssc", part, n, 35)
    elif name == "yinyang":
        yinyang(root / "yinyang")
    elif name == "spoken-digits":
        spoken_digits(root / "fsdd" / "recordings")
    else:
        assert not data.source(name).layouts, f"no fabricated files for {name}"
