"""`Source` describes one data set. `sets/` has a file for each; no other code knows their names.

backspike finds a data set in a root folder, in torchvision's layout or in the folder that its
archive unpacks to, and recognises missing or damaged files by the sizes and MD5 sums of the
official ones. Only `fetch.py` downloads, when it is asked to. The root is the given folder, else
the environment variable BACKSPIKE_DATA, else `./data`.
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
from .formats import Events, read_file
from .split import Split, Splits, carve

logger = logging.getLogger("backspike")
# train, validation, test
Parts = tuple[Split, Split, Split]
# the options of every event set
EVENT_OPTIONS: Mapping[str, Any] = {"T": None, "size": None, "by": "time"}


@dataclass(frozen=True)
class Archive:
    """A downloadable archive (.zip or .tar.gz) that has to be unpacked.

    urls: addresses for programs, in the order in which they are tried.
    """

    name: str
    md5: str | None
    urls: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True)
class File:
    """One file, or a folder with `recordings` files (the official number) that match `pattern`.

    size, md5: None if unknown. archive: the archive that contains the file, if it is known.
    urls: addresses of the file itself, in the order in which they are tried.
    """

    name: str
    size: int | None = None
    md5: str | None = None
    recordings: int = 0
    pattern: str = "*/*.bin"
    archive: Archive | None = None
    urls: tuple[str, ...] = ()

    def is_in(self, folder: Path) -> bool:
        """Whether `folder` has the file, or at least one of the recordings."""
        path = folder / self.name
        return any(path.glob(self.pattern)) if self.recordings else path.exists()

    def count_in(self, folder: Path) -> int:
        """The number of recordings in `folder`; of a single file 1 or 0."""
        path = folder / self.name
        return sum(1 for _ in path.glob(self.pattern)) if self.recordings else int(path.exists())

    def description(self) -> str:
        """What is known of the file: number of recordings or size, MD5, archive."""
        number = f"{self.recordings:,} {self._unit} {self.pattern}" if self.recordings else ""
        size = f"{self.size:,} bytes" if self.size is not None else ""
        md5 = f"MD5 {self.md5}" if self.md5 is not None else ""
        archive = ""
        if self.archive:
            known = f" (MD5 {self.archive.md5})" if self.archive.md5 else ""
            archive = f"unpacked from {self.archive.name}{known}"
        return ", ".join(filter(None, (number, size, md5, archive)))

    def state(self, folder: Path) -> str:
        """The state of the file in `folder`, as in `Source.check`."""
        path = folder / self.name
        n = self.count_in(folder)
        if not n:
            return f"missing: {self.description()}".removesuffix(": ")
        if self.recordings:
            if n == self.recordings:
                return f"present, all {n:,} {self._unit}"
            if n > self.recordings:
                return f"present, {n:,} {self._unit}, officially {self.recordings:,}"
            missing = self.recordings - n
            return f"incomplete: {n:,} of {self.recordings:,} {self._unit}, {missing:,} missing"
        if not path.is_file():
            return "damaged: not a regular file"
        if self.size not in (None, path.stat().st_size):
            return f"damaged: {path.stat().st_size:,} bytes, the official file has {self.size:,}"
        if self.md5 is None:
            return "present, no official MD5 known"
        digest = _md5()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        md5 = digest.hexdigest()
        return "present" if md5 == self.md5 else f"damaged: MD5 {md5}, official {self.md5}"

    @property
    def _unit(self) -> str:
        return "pictures" if self.pattern.endswith(".JPEG") else "recordings"


@dataclass(frozen=True)
class Layout:
    """One arrangement on disk: all `files` are in one of `folders` under the root ("")."""

    folders: tuple[str, ...]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Place:
    """Where the files of a data set are. official: MD5 -> the data set that the file belongs to."""

    root: str | os.PathLike[str] | None = None
    folder: Path = Path()
    files: tuple[File, ...] = ()
    official: Mapping[str, str] = field(default_factory=dict)

    def contents(self) -> Iterator[tuple[Path, bytes]]:
        """Yields path and content of each file.

        Raises DataError for a file of another data set; warns of an unknown one.
        """
        for file in self.files:
            path = self.folder / file.name
            data = read_file(path)
            md5 = _md5(data).hexdigest()
            if file.md5 not in (None, md5):
                if md5 in self.official:
                    raise DataError(
                        f"{path} is a file of {self.official[md5]}; "
                        f"expected the official {file.name}"
                    )
                logger.warning("%s is not the official file (MD5 %s): using it anyway", path, md5)
            yield path, data


@dataclass(frozen=True)
class Source:
    """The description of a data set.

    kind: "images", "sequences" (of the pixels of images) or "events". samples: the number of
    train, validation and test samples.
    shape: one image [C, H, W] or the sensor [2, H, W]. credit: whom to cite. home: where the files
    are offered. licence: "" if none is known here. read: `read(source, place, **options)` returns
    the three parts. layouts: empty for a set that is bundled or made on first use. note: what every
    result on the set must mention, such as "simulated". options: the options of `read` and their
    defaults. count_classes: whether to count the classes, because a part of the set may have fewer
    than `num_classes`. window: the duration in microseconds that is divided into T bins, None for
    that of each recording. decode: reads a recording of another kind than `read_events`, such as a
    sound, from its content.
    """

    name: str
    kind: str
    samples: tuple[int, int, int]
    num_classes: int
    shape: tuple[int, int, int]
    credit: str
    home: str
    read: Callable[..., Any]
    layouts: tuple[Layout, ...] = ()
    note: str = ""
    licence: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    count_classes: bool = False
    window: int | None = None
    decode: Callable[[bytes, str], Events] | None = None

    @property
    def unit(self) -> str:
        """What one sample is, in the plural: "images", "sequences" or "recordings"."""
        return "recordings" if self.kind == "events" else self.kind

    @property
    def has_channels(self) -> bool:
        """Whether events have a channel instead of a pixel and a polarity."""
        return self.kind == "events" and self.shape[:2] == (1, 1)

    def load(self, place: Place, **options: Any) -> Splits:
        """Finds and reads the data set. Raises DataError for missing or damaged files."""
        found = self.found(place.root)
        if found is not None:
            place = Place(place.root, found[0], found[1].files, place.official)
        elif self.layouts:
            raise self.missing(place.root)
        parts: Parts = self.read(self, place, **options)
        present, official = sum(map(len, parts)), sum(self.samples)
        part = f"{present:,} of {official:,} samples" if present != official else ""
        note = "; ".join(filter(None, (self.note, part)))
        num_classes = self.num_classes
        if self.count_classes:
            num_classes = 1 + max(int(part.y.max(initial=0)) for part in parts)
        return Splits(self.name, *parts, num_classes, self.kind == "events", note, self.credit)

    def found(self, root: str | os.PathLike[str] | None = None) -> tuple[Path, Layout] | None:
        """The first folder that has all files, and their layout; None if there is none."""
        for folder, layout in self._places(root):
            if all(file.is_in(folder) for file in layout.files):
                return folder, layout
        return None

    def check(self, root: str | os.PathLike[str] | None = None) -> list[tuple[Path, str]]:
        """(path, state) of each file, in the place that has most of them.

        A state is "present" (the MD5 is the official one), "present, ...", "incomplete: ...",
        "damaged: ..." or "missing: ...". Empty for sets that need no files. Reads whole files.
        """
        best = self._best_place(root)
        if best is None:
            return []
        folder, layout = best
        return [(folder / file.name, file.state(folder)) for file in layout.files]

    def presence(self, root: str | os.PathLike[str] | None = None) -> str:
        """How much of the set is on this machine, in words, without reading a file.

        "complete", "missing", or a count such as "1,100 of 70,000 recordings" or "3 of 4 files".
        """
        best = self._best_place(root)
        if best is None:
            return "complete"
        folder, layout = best
        counts = [(file.count_in(folder), file.recordings or 1) for file in layout.files]
        if not any(n for n, _ in counts):
            return "missing"
        if all(n >= official for n, official in counts):
            return "complete"
        in_folders = [file for file in layout.files if file.recordings]
        if in_folders and all(file.is_in(folder) for file in layout.files):
            n = sum(file.count_in(folder) for file in in_folders)
            return f"{n:,} of {sum(file.recordings for file in in_folders):,} {self.unit}"
        unit = "folders" if in_folders else "files"
        return f"{sum(n > 0 for n, _ in counts)} of {len(counts)} {unit}"

    def missing(self, root: str | os.PathLike[str] | None = None) -> DataError:
        """The error that tells which files to put where."""
        layout, searched = self.layouts[0], roots(root)[0]
        files = "; ".join(
            f"{layout.folders[0]}/{file.name}, {file.description()}" for file in layout.files
        )
        return DataError(
            f"{self.name} is not in {searched}; download these files from {self.home} into it, "
            f"or into another folder named by BACKSPIKE_DATA: {files}"
        )

    def carve(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Splits official training samples: indices (train, validation), shares as in `samples`."""
        train, validation, _ = self.samples
        return carve(y, len(y) * validation // (train + validation))

    def _places(self, root: str | os.PathLike[str] | None) -> Iterator[tuple[Path, Layout]]:
        for top in roots(root):
            for layout in self.layouts:
                for folder in layout.folders:
                    yield top / folder, layout

    def _best_place(self, root: str | os.PathLike[str] | None) -> tuple[Path, Layout] | None:
        """The folder and layout with most of the files; None for sets that need no files."""
        return max(
            self._places(root),
            key=lambda place: sum(file.is_in(place[0]) for file in place[1].files),
            default=None,
        )


def roots(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """The folders to search: `root`, else BACKSPIKE_DATA, else `./data`.

    A last one is `../shared/data`, where developers of backspike have data beside the checkout.
    """
    given = root or os.environ.get("BACKSPIKE_DATA")
    return [Path(given).expanduser()] if given else [Path("data"), Path("../shared/data")]


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)
