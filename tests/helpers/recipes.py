"""Shared by the tests: parts of what was in test_recipes.py."""

import pickle

import numpy as np
import pytest

from backspike import data


def cifar(folder, files, labels, classes, n=20):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for file in files:
        batch = {
            b"data": rng.integers(0, 256, (n, 3072), np.uint8),
            labels: [i % classes for i in range(n)],
        }
        (folder / file).write_bytes(pickle.dumps(batch, 4))


def put(name, root):
    """A few samples of a data set, where its official files belong."""
    if name == "mnist":
        from helpers.datasets import fake_mnist

        fake_mnist(root / "MNIST" / "raw")
    elif name == "nmnist":
        from helpers.datasets import fake_nmnist

        fake_nmnist(root / "NMNIST")
    elif name == "cifar10":
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
    else:
        assert not data.source(name).layouts, f"no fabricated files for {name}"
