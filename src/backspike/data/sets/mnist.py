"""MNIST and Fashion-MNIST, in idx files; MNIST recorded by the simulated event camera."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..formats import idx
from ..images import Images, Labelled
from ..simulate import Camera
from ..simulated import simulated
from ..source import File, Layout, Source


def _decode(files: Sequence[tuple[Path, bytes]]) -> tuple[Labelled, Labelled]:
    x, y, test_x, test_y = (idx.decode(data, str(path)) for path, data in files)
    x, test_x = (images.reshape(*images.shape[:1], 1, *images.shape[1:]) for images in (x, test_x))
    return (x, y), (test_x, test_y)


def _layouts(
    folder: str, mirrors: tuple[str, ...], *official: tuple[str, int, str]
) -> tuple[Layout, ...]:
    folders = (f"{folder}/raw", folder, "")
    packed = tuple(
        File(f"{name}.gz", size, md5, urls=tuple(f"{mirror}/{name}.gz" for mirror in mirrors))
        for name, size, md5 in official
    )
    return Layout(folders, packed), Layout(folders, tuple(File(name) for name, _, _ in official))


MNIST = Source(
    name="mnist",
    kind="images",
    samples=(55000, 5000, 10000),
    num_classes=10,
    shape=(1, 28, 28),
    credit="Y. LeCun, C. Cortes, C. J. C. Burges",
    home="https://yann.lecun.com/exdb/mnist",
    read=Images(_decode),
    layouts=_layouts(
        "MNIST",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "https://storage.googleapis.com/cvdf-datasets/mnist",
        ),
        ("train-images-idx3-ubyte", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3-ubyte", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
)
FASHION_MNIST = replace(
    MNIST,
    name="fashion-mnist",
    credit="H. Xiao, K. Rasul, R. Vollgraf 2017, MIT licence",
    licence="MIT",
    home="https://github.com/zalandoresearch/fashion-mnist",
    layouts=_layouts(
        "FashionMNIST",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
        ("train-images-idx3-ubyte", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte", 29515, "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte", 4422102, "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte", 5148, "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
)
MNIST_DVS = simulated(MNIST, Camera(), "mnist-dvs", "the files of mnist")
