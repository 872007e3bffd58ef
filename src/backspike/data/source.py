"""`Source`: everything about one data set. `sets/` has a file for each; no other knows its name.

backspike downloads nothing. A data set is found in a root folder in torchvision's layout or in the
folder its archive unpacks to; sizes and MD5 sums of the official files say what is missing or
damaged. The root is the folder given, else the environment variable BACKSPIKE_DATA, else `./data`,
else `../shared/data`.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .split import Split, Splits, carve

logger = logging.getLogger("backspike")
Parts = tuple[Split, Split, Split]  # train, validation, test
EVENT_OPTIONS: Mapping[str, Any] = {"T": None, "size": None, "by": "time"}  # of every event set


@dataclass(frozen=True)
class Archive:
    """What is offered for download and has to be unpacked."""

    name: str
    md5: str


@dataclass(frozen=True)
class File:
    """One file, or a folder of `recordings`, their official number, which `pattern` finds in it.

    Unknown size or sum: None. `archive`: where the file comes out of one whose sum is known.
    """

    name: str
    size: int | None = None
    md5: str | None = None
    recordings: int = 0
    pattern: str = "*/*.bin"
    archive: Archive | None = None

    def is_in(self, folder: Path) -> bool:
        path = folder / self.name
        return any(path.glob(self.pattern)) if self.recordings else path.exists()

    def description(self) -> str:
        """What to look for: number or size, sum, archive; as far as they are known."""
        number = f"{self.recordings:,} {self._kind} {self.pattern}" if self.recordings else ""
        size = f"{self.size:,} bytes" if self.size is not None else ""
        md5 = f"MD5 {self.md5}" if self.md5 is not None else ""
        archive = (
            f"unpacked from {self.archive.name} (MD5 {self.archive.md5})" if self.archive else ""
        )
        return ", ".join(filter(None, (number, size, md5, archive)))

    def state(self, folder: Path) -> str:
        """The state of the file in this folder, see `Source.check`."""
        path = folder / self.name
        if self.recordings and path.is_dir() and (n := sum(1 for _ in path.glob(self.pattern))):
            return f"present, {n:,} of {self.recordings:,} {self._kind}"
        if self.recordings or not path.exists():
            return f"missing: {self.description()}".removesuffix(": ")
        if self.size not in (None, path.stat().st_size):
            return f"damaged: {path.stat().st_size:,} bytes, the official file has {self.size:,}"
        if self.md5 is None:
            return "present, no official sum known"
        digest = _md5()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        md5 = digest.hexdigest()
        return "present" if md5 == self.md5 else f"damaged: MD5 {md5}, official {self.md5}"

    @property
    def _kind(self) -> str:
        return "pictures" if self.pattern.endswith(".JPEG") else "recordings"


@dataclass(frozen=True)
class Layout:
    """One way a data set lies on disk: all `files` in one of `folders` under the root ("")."""

    folders: tuple[str, ...]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Place:
    """Where the files of a data set are. `official`: MD5 sums, and whose file each belongs to."""

    root: str | os.PathLike[str] | None = None
    folder: Path = Path()
    files: tuple[File, ...] = ()
    official: Mapping[str, str] = field(default_factory=dict)

    def contents(self) -> Iterator[tuple[Path, bytes]]:
        """The bytes of all files. Another data set's file is refused, an unknown one announced."""
        for file in self.files:
            path = self.folder / file.name
            data = path.read_bytes()
            md5 = _md5(data).hexdigest()
            if file.md5 not in (None, md5):
                if md5 in self.official:
                    raise DataError(
                        f"{path} is a file of {self.official[md5]}, "
                        f"not the {file.name} expected here"
                    )
                logger.warning("%s is not the official file (MD5 %s): read as it is", path, md5)
            yield path, data


@dataclass(frozen=True)
class Source:
    """A data set. `samples`: train, validation, test.

    `kind`: "images" or "events". `shape`: one image [C, H, W] or the sensor [2, H, W].
    `credit`: whom to cite; `home`: where its files are offered.
    `read(source, place, **options)` gives the three parts; `options`: those it takes and their
    defaults. `layouts` is empty where no files are needed: the set is bundled or made on first use.
    `note`: what a result on it must say, for instance "simulated".
    `count_classes`: a part of the set may have fewer classes than `num_classes`; they are counted.
    """

    name: str
    kind: str
    samples: tuple[int, int, int]
    num_classes: int
    shape: tuple[int, int, int]
    credit: str
    home: str
    read: Callable[..., Parts]
    layouts: tuple[Layout, ...] = ()
    note: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    count_classes: bool = False

    def load(self, place: Place, **options: Any) -> Splits:
        """The data set, found and read. Raises DataError for missing or damaged files."""
        found = self.found(place.root)
        if found is not None:
            place = Place(place.root, found[0], found[1].files, place.official)
        elif self.layouts:
            raise self.missing(place.root)
        parts = self.read(self, place, **options)
        held, official = sum(map(len, parts)), sum(self.samples)
        part = f"{held:,} of {official:,} samples" if held != official else ""
        note = "; ".join(filter(None, (self.note, part)))
        num_classes = self.num_classes
        if self.count_classes:
            num_classes = 1 + max(int(part.y.max(initial=0)) for part in parts)
        return Splits(self.name, *parts, num_classes, self.kind == "events", note, self.credit)

    def found(self, root: str | os.PathLike[str] | None = None) -> tuple[Path, Layout] | None:
        """The first folder that holds all files, and their layout; None where there is none."""
        for folder, layout in self._places(root):
            if all(file.is_in(folder) for file in layout.files):
                return folder, layout
        return None

    def check(self, root: str | os.PathLike[str] | None = None) -> list[tuple[Path, str]]:
        """(path, state) of every file, in the place that holds most of them.

        A state is "present" (the official file: the sum agrees), "present, ..." (what is known),
        "damaged: ..." or "missing: ...". Empty for sets that need no files. Reads whole files.
        """
        places = list(self._places(root))
        if not places:
            return []
        folder, layout = max(
            places, key=lambda place: sum(f.is_in(place[0]) for f in place[1].files)
        )
        return [(folder / file.name, file.state(folder)) for file in layout.files]

    def missing(self, root: str | os.PathLike[str] | None = None) -> DataError:
        """The error that says which files to put where."""
        layout, searched = self.layouts[0], " or ".join(str(folder) for folder in roots(root))
        files = "; ".join(
            f"{layout.folders[0]}/{file.name}, {file.description()}" for file in layout.files
        )
        return DataError(
            f"{self.name} is not in {searched}; "
            f"from {self.home} put there (or set BACKSPIKE_DATA): {files}"
        )

    def carve(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices (train, validation) of official training samples; shares as in `samples`."""
        train, validation, _ = self.samples
        return carve(y, len(y) * validation // (train + validation))

    def _places(self, root: str | os.PathLike[str] | None) -> Iterator[tuple[Path, Layout]]:
        for top in roots(root):
            for layout in self.layouts:
                for folder in layout.folders:
                    yield top / folder, layout


def roots(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders to search: `root`, else BACKSPIKE_DATA, else `./data` and `../shared/data`."""
    given = root or os.environ.get("BACKSPIKE_DATA")
    return [Path(given).expanduser()] if given else [Path("data"), Path("../shared/data")]


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)
