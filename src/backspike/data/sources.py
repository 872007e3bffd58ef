"""The catalogue: which data sets there are, which files make them, where these are looked for.

backspike downloads nothing. A data set is found in a root folder in torchvision's layout or in the folder its archive
unpacks to; sizes and MD5 sums of the official files say what is missing or damaged. The root is the folder given, else the
environment variable BACKSPIKE_DATA, else `./data`, else `../shared/data`.
"""

import difflib
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError

logger = logging.getLogger("backspike")


@dataclass(frozen=True)
class Archive:
    """What is offered for download and has to be unpacked."""

    name: str
    md5: str


@dataclass(frozen=True)
class File:
    """One file, or a folder of recordings: then `recordings` is their official number, `pattern` how they are found in it.

    Unknown size or sum: None. `archive`: where the file comes out of one whose sum is known.
    """

    name: str
    size: int | None = None
    md5: str | None = None
    recordings: int = 0
    pattern: str = "*/*.bin"
    archive: Archive | None = None


@dataclass(frozen=True)
class Layout:
    """One way a data set lies on disk: all `files` in one of `folders` under the root ("" is the root itself)."""

    folders: tuple[str, ...]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Source:
    """What is known of a data set. `samples`: train, validation, test; `shape`: one image [C, H, W] or the sensor [2, H, W].

    `layouts` is empty where nothing needs to be put anywhere: the set is bundled or made on first use.
    """

    name: str
    kind: str
    samples: tuple[int, int, int]
    num_classes: int
    shape: tuple[int, int, int]
    credit: str
    home: str
    layouts: tuple[Layout, ...] = ()
    note: str = ""

    def validation_of(self, n: int) -> int:
        """How many of n official training samples are carved out for validation: `samples`' share."""
        train, validation, _ = self.samples
        return n * validation // (train + validation)


def _idx_layouts(folders: tuple[str, ...], *files: tuple[str, int, str]) -> tuple[Layout, ...]:
    packed = tuple(File(f"{name}.gz", size, md5) for name, size, md5 in files)
    return Layout(folders, packed), Layout(folders, tuple(File(name) for name, _, _ in files))


def _unzipped(*files: tuple[str, str]) -> tuple[File, ...]:
    return tuple(File(name, archive=Archive(f"{name}.zip", md5)) for name, md5 in files)


DIGITS_CREDIT = "E. Alpaydin, C. Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0"
MNIST_CREDIT = "Y. LeCun, C. Cortes, C. J. C. Burges"
CIFAR_CREDIT = "A. Krizhevsky 2009"
MNIST_LAYOUTS = _idx_layouts(
    ("MNIST/raw", "MNIST", ""),
    ("train-images-idx3-ubyte", 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    ("train-labels-idx1-ubyte", 28881, "d53e105ee54ea40749a09fcbcd1e9432"),
    ("t10k-images-idx3-ubyte", 1648877, "9fb629c4189551a2d022fa330f9573f3"),
    ("t10k-labels-idx1-ubyte", 4542, "ec29112dd5afa0611ce80d1b7f02629c"),
)
CIFAR10_LAYOUTS = (
    Layout(
        ("cifar-10-batches-py", ""),
        (
            File("data_batch_1", 31035704, "c99cafc152244af753f735de768cd75f"),
            File("data_batch_2", 31035320, "d4bba439e000b95fd0a9bffe97cbabec"),
            File("data_batch_3", 31035999, "54ebc095f3ab1f0389bbae665268c751"),
            File("data_batch_4", 31035696, "634d18415352ddfa80567beed471001a"),
            File("data_batch_5", 31035623, "482c414d41f54cd18b22e5b47cb7c3cb"),
            File("test_batch", 31035526, "40351d587109b95175f43aff81a1287e"),
        ),
    ),
    Layout(
        ("cifar-10-batches-bin", ""),
        (
            *(File(f"data_batch_{i}.bin", 30730000) for i in range(1, 6)),
            File("test_batch.bin", 30730000),
        ),
    ),
)
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DVS_CIFAR10_MD5 = (
    "0afd5c4bf9ae06af762a77b180354fdd",
    "8438dfeba3bc970c94962d995b1b9bdd",
    "a9c207c91c55b9dc2002dc21c684d785",
    "52c63c677c2b15fa5146a8daf4d56687",
    "b6bf21f6c04d21ba4e23fc3e36c8a4a3",
    "f379ebdf6703d16e0a690782e62639c3",
    "cad6ed91214b1c7388a5f6ee56d08803",
    "e7cbbf77bec584ffbf913f00e682782a",
    "41c7bd7d6b251be82557c6cce9a7d5c9",
    "89f3922fd147d9aeff89e76a2b0b70a7",
)
DVS_GESTURE = Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1")
HEIDELBERG_CREDIT = "B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke 2020, CC BY 4.0"
HEIDELBERG_HOME = "https://zenkelab.org/datasets"

CATALOGUE = (
    Source(
        "digits",
        "images",
        (1257, 180, 360),
        10,
        (1, 8, 8),
        DIGITS_CREDIT,
        "https://archive.ics.uci.edu/dataset/80",
        note="bundled",
    ),
    Source(
        "digits-dvs",
        "events",
        (1257, 180, 360),
        10,
        (2, 34, 34),
        DIGITS_CREDIT,
        "https://archive.ics.uci.edu/dataset/80",
        note="simulated: made on first use from the bundled digits",
    ),
    Source(
        "mnist",
        "images",
        (55000, 5000, 10000),
        10,
        (1, 28, 28),
        MNIST_CREDIT,
        "https://yann.lecun.com/exdb/mnist",
        MNIST_LAYOUTS,
    ),
    Source(
        "fashion-mnist",
        "images",
        (55000, 5000, 10000),
        10,
        (1, 28, 28),
        "H. Xiao, K. Rasul, R. Vollgraf 2017, MIT licence",
        "https://github.com/zalandoresearch/fashion-mnist",
        _idx_layouts(
            ("FashionMNIST/raw", "FashionMNIST", ""),
            ("train-images-idx3-ubyte", 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte", 29515, "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte", 4422102, "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte", 5148, "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
    ),
    Source(
        "cifar10",
        "images",
        (45000, 5000, 10000),
        10,
        (3, 32, 32),
        CIFAR_CREDIT,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        CIFAR10_LAYOUTS,
    ),
    Source(
        "cifar100",
        "images",
        (45000, 5000, 10000),
        100,
        (3, 32, 32),
        CIFAR_CREDIT,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            Layout(
                ("cifar-100-python", ""),
                (
                    File("train", None, "16019d7e3df5f24257cddd939b257f8d"),
                    File("test", None, "f0ef6b0ae62326f3e7ffdfab6717acfc"),
                ),
            ),
            Layout(
                ("cifar-100-binary", ""), (File("train.bin", 153700000), File("test.bin", 30740000))
            ),
        ),
    ),
    Source(
        "nmnist",
        "events",
        (55000, 5000, 10000),
        10,
        (2, 34, 34),
        "G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor 2015, CC BY-SA 4.0",
        "https://www.garrickorchard.com/datasets/n-mnist",
        (
            Layout(
                ("NMNIST", "N-MNIST", ""),
                (File("Train", recordings=60000), File("Test", recordings=10000)),
            ),
        ),
    ),
    Source(
        "dvs-cifar10",
        "events",
        (8100, 900, 1000),
        10,
        (2, 128, 128),
        "H. Li, H. Liu, X. Ji, G. Li, L. Shi 2017, CC BY 4.0",
        "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
        (
            Layout(
                ("DVS-CIFAR10", "CIFAR10DVS", "CIFAR10DVS/extract", "CIFAR10-DVS", ""),
                tuple(
                    File(
                        name,
                        recordings=1000,
                        pattern="cifar10_*.aedat",
                        archive=Archive(f"{name}.zip", md5),
                    )
                    for name, md5 in zip(CIFAR10_CLASSES, DVS_CIFAR10_MD5)
                ),
            ),
        ),
    ),
    Source(
        "n-caltech101",
        "events",
        (7063, 823, 823),
        101,
        (2, 180, 240),
        "G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor 2015, CC BY-SA 4.0",
        "https://www.garrickorchard.com/datasets/n-caltech101",
        (
            Layout(
                (
                    "N-Caltech101/Caltech101",
                    "NCaltech101/Caltech101",
                    "NCaltech101/extract/Caltech101",
                    "Caltech101",
                    "",
                ),
                (
                    File(
                        ".",
                        recordings=8709,
                        pattern="*/image_*.bin",
                        archive=Archive("Caltech101.zip", "66201824eabb0239c7ab992480b50ba3"),
                    ),
                ),
            ),
        ),
    ),
    Source(
        "dvs128-gesture",
        "events",
        (1020, 156, 288),
        11,
        (2, 128, 128),
        "A. Amir et al. 2017, CC BY 4.0",
        "https://research.ibm.com/interactive/dvsgesture",
        (
            Layout(
                (
                    "DvsGesture",
                    "DVS128Gesture/DvsGesture",
                    "DVS128Gesture/extract/DvsGesture",
                    "DVSGesture/DvsGesture",
                    "",
                ),
                (
                    File("trials_to_train.txt", archive=DVS_GESTURE),
                    File("trials_to_test.txt", archive=DVS_GESTURE),
                    File(".", recordings=122, pattern="user*.aedat", archive=DVS_GESTURE),
                ),
            ),
        ),
    ),
    Source(
        "shd",
        "events",
        (7341, 815, 2264),
        20,
        (1, 1, 700),
        HEIDELBERG_CREDIT,
        HEIDELBERG_HOME,
        (
            Layout(
                ("SHD", "shd", "hdspikes", ""),
                _unzipped(
                    ("shd_train.h5", "f3252aeb598ac776c1b526422d90eecb"),
                    ("shd_test.h5", "1503a5064faa34311c398fb0a1ed0a6f"),
                ),
            ),
        ),
    ),
    Source(
        "ssc",
        "events",
        (75466, 9981, 20382),
        35,
        (1, 1, 700),
        HEIDELBERG_CREDIT,
        HEIDELBERG_HOME,
        (
            Layout(
                ("SSC", "ssc", "hdspikes", ""),
                _unzipped(
                    ("ssc_train.h5", "d102be95e7144fcc0553d1f45ba94170"),
                    ("ssc_valid.h5", "b4eee3516a4a90dd0c71a6ac23a8ae43"),
                    ("ssc_test.h5", "a35ff1e9cffdd02a20eb850c17c37748"),
                ),
            ),
        ),
    ),
    Source(
        "imagenet",
        "images",
        (1231167, 50000, 50000),
        1000,
        (3, 224, 224),
        "O. Russakovsky et al. 2015, for research only",
        "https://www.image-net.org/challenges/LSVRC/2012",
        (
            Layout(
                ("ImageNet", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", ""),
                (
                    File(
                        "train",
                        recordings=1281167,
                        pattern="*/*.JPEG",
                        archive=Archive(
                            "ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"
                        ),
                    ),
                    File(
                        "val",
                        recordings=50000,
                        pattern="*/*.JPEG",
                        archive=Archive(
                            "ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"
                        ),
                    ),
                ),
            ),
        ),
    ),
    Source(
        "mnist-dvs",
        "events",
        (55000, 5000, 10000),
        10,
        (2, 34, 34),
        MNIST_CREDIT,
        "https://yann.lecun.com/exdb/mnist",
        MNIST_LAYOUTS,
        note="simulated: made on first use from mnist's files",
    ),
    Source(
        "cifar10-dvs-simulated",
        "events",
        (45000, 5000, 10000),
        10,
        (2, 48, 48),
        CIFAR_CREDIT,
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        CIFAR10_LAYOUTS,
        note="simulated: made on first use from cifar10's files; not the recordings of DVS-CIFAR10",
    ),
)


def catalogue() -> list[Source]:
    """All data sets that `load` knows."""
    return list(CATALOGUE)


def source(name: str) -> Source:
    """The catalogue's entry `name`. Raises DataError, with the nearest names, where there is none."""
    for entry in CATALOGUE:
        if entry.name == name:
            return entry
    names = [entry.name for entry in CATALOGUE]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4) or names
    raise DataError(f"no data set {name!r}; did you mean {' or '.join(near)}?")


def roots(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders that are searched, in order: `root`, else BACKSPIKE_DATA, else `./data` and `../shared/data`."""
    given = root or os.environ.get("BACKSPIKE_DATA")
    return [Path(given).expanduser()] if given else [Path("data"), Path("../shared/data")]


def found(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Path, Layout] | None:
    """The first folder that holds all files of a data set, and their layout; None where there is none."""
    for folder, layout in _places(source(name), root):
        if all(_held(folder, file) for file in layout.files):
            return folder, layout
    return None


def check(name: str, root: str | os.PathLike[str] | None = None) -> list[tuple[Path, str]]:
    """(path, state) of every file of a data set, in the place that holds most of them.

    A state is "present" (the official file: the sum agrees), "present, ..." (what is known), "damaged: ..." or "missing: ...".
    Empty for sets that need no files. Reads the files whole: seconds for CIFAR.
    """
    places = list(_places(source(name), root))
    if not places:
        return []
    folder, layout = max(
        places, key=lambda place: sum(_held(place[0], file) for file in place[1].files)
    )
    return [(folder / file.name, _state(folder / file.name, file)) for file in layout.files]


def missing(name: str, root: str | os.PathLike[str] | None = None) -> DataError:
    """The error that says which files of a data set to put where."""
    entry = source(name)
    layout, searched = entry.layouts[0], " or ".join(str(folder) for folder in roots(root))
    files = "; ".join(
        f"{layout.folders[0]}/{file.name}, {_describe(file)}" for file in layout.files
    )
    return DataError(
        f"{name} is not in {searched}; from {entry.home} put there (or set BACKSPIKE_DATA): {files}"
    )


def read(path: Path, file: File) -> bytes:
    """The bytes of a file, compared with the official sum: another data set's file is refused, an unknown one announced."""
    data = path.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if file.md5 in (None, md5):
        return data
    for entry in CATALOGUE:
        if any(md5 == other.md5 for layout in entry.layouts for other in layout.files):
            raise DataError(f"{path} is a file of {entry.name}, not the {file.name} expected here")
    logger.warning("%s is not the official file (MD5 %s): read as it is", path, md5)
    return data


def _places(entry: Source, root: str | os.PathLike[str] | None) -> Iterator[tuple[Path, Layout]]:
    for top in roots(root):
        for layout in entry.layouts:
            for folder in layout.folders:
                yield top / folder, layout


def _held(folder: Path, file: File) -> bool:
    path = folder / file.name
    return any(path.glob(file.pattern)) if file.recordings else path.exists()


def _describe(file: File) -> str:
    number = f"{file.recordings:,} {_kind(file)} {file.pattern}" if file.recordings else ""
    size = f"{file.size:,} bytes" if file.size is not None else ""
    md5 = f"MD5 {file.md5}" if file.md5 is not None else ""
    archive = f"unpacked from {file.archive.name} (MD5 {file.archive.md5})" if file.archive else ""
    return ", ".join(filter(None, (number, size, md5, archive)))


def _kind(file: File) -> str:
    return "pictures" if file.pattern.endswith(".JPEG") else "recordings"


def _state(path: Path, file: File) -> str:
    if file.recordings and path.is_dir() and (held := sum(1 for _ in path.glob(file.pattern))):
        return f"present, {held:,} of {file.recordings:,} {_kind(file)}"
    if file.recordings or not path.exists():
        return f"missing: {_describe(file)}".removesuffix(": ")
    if file.size not in (None, path.stat().st_size):
        return f"damaged: {path.stat().st_size:,} bytes, the official file has {file.size:,}"
    if file.md5 is None:
        return "present, no official sum known"
    with path.open("rb") as stream:
        md5 = hashlib.md5(usedforsecurity=False)
        while block := stream.read(1 << 20):
            md5.update(block)
    return (
        "present"
        if md5.hexdigest() == file.md5
        else f"damaged: MD5 {md5.hexdigest()}, official {file.md5}"
    )
