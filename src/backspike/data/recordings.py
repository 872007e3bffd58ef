"""Which samples an event set has in its official folder, which part each belongs to, and how its events are read.

The parts are the official ones where there are such, else those published in `data/splits`; what is carved out for validation
follows `split.carve` or the same list.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from .formats import Events, aedat2, aedat3, gesture, nmnist, shd
from .sources import Source
from .split import carve, published

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Sample:
    """One recording, or one in a file of many: SHD's number `id`, or the microseconds [start, stop) of `span`."""

    path: Path
    label: int
    id: int
    span: tuple[int, int] | None = None


Parts = list[list[Sample]]  # train, validation, test


def parts(source: Source, folder: Path) -> Parts:
    """The samples of train, validation and test. Raises DataError for names that do not belong, and where a part is missing."""
    match source.name:
        case "dvs-cifar10":
            found = _by_class(source.name, folder, "cifar10_{}_*.aedat")
        case "n-caltech101":
            found = _by_class(source.name, folder, "image_*.bin")
        case "dvs128-gesture":
            found = _gestures(source.name, folder)
        case "shd" | "ssc":
            found = _spoken(source, folder)
        case _:
            found = _numbered(source, folder)
    if not found[0] or not found[2]:
        raise DataError(
            f"{folder}: {len(found[0])} recordings to train and {len(found[2])} to test: both are needed"
        )
    return found


def read(name: str, path: Path, samples: list[Sample], upright: bool = True) -> Iterator[Events]:
    """The events of samples of one file of the event set `name`. Raises DataError for damage, OSError for a missing file."""
    match name:
        case "dvs-cifar10":
            yield aedat2.decode(path.read_bytes(), str(path), upright)
        case "dvs128-gesture":
            yield from _cut(aedat3.decode(path.read_bytes(), str(path)), samples)
        case "shd" | "ssc":
            yield from shd.decode(path, [sample.id for sample in samples])
        case _:
            yield nmnist.decode(path.read_bytes(), str(path))


def _cut(events: Events, samples: list[Sample]) -> Iterator[Events]:
    for sample in samples:
        assert sample.span is not None
        inside = (events.t >= sample.span[0]) & (events.t < sample.span[1])
        yield Events(events.x[inside], events.y[inside], events.t[inside], events.p[inside])


def _numbered(source: Source, folder: Path) -> Parts:
    """N-MNIST: `Train|Test/<class>/<number>.bin`. `Validation` beside them is used where it exists, else carved from Train."""
    train, test = _numbered_in(folder / "Train"), _numbered_in(folder / "Test")
    if (folder / "Validation").is_dir():
        return [train, _numbered_in(folder / "Validation"), test]
    return [*_carved(source, train), test]


def _numbered_in(folder: Path) -> list[Sample]:
    try:
        found = [
            Sample(path, int(path.parent.name), int(path.stem))
            for path in folder.glob("[!.]*/*.bin")
        ]
    except ValueError as error:
        raise DataError(
            f"{folder}: a recording is not named <class number>/<number>.bin ({error})"
        ) from error
    if not found:
        raise DataError(f"{folder}: no recordings <class number>/<number>.bin")
    return sorted(found, key=lambda sample: (sample.id, sample.label))


def _carved(source: Source, train: list[Sample]) -> Parts:
    rest, validation = carve(
        np.array([sample.label for sample in train]), source.validation_of(len(train))
    )
    return [[train[i] for i in rest], [train[i] for i in validation]]


def _by_class(name: str, folder: Path, pattern: str) -> Parts:
    """`<class>/<file>` with a number in the file's name: parts by class and number, as published."""
    found: Parts = [[], [], []]
    for label, (category, ids) in enumerate(published(name).items()):
        named = pattern.format(category)
        number = re.compile(re.escape(named).replace(r"\*", "([0-9]{1,6})"))
        for path in (folder / category).glob(f"*{named[named.rindex('.') :]}"):
            match = number.fullmatch(path.name)
            part = next((part for part in range(3) if match and int(match[1]) in ids[part]), None)
            if match is None or part is None:
                raise DataError(
                    f"{path}: not among the recordings {category}/{named} of {name}'s published split"
                )
            found[part].append(Sample(path, label, int(match[1])))
    return [sorted(samples, key=lambda sample: (sample.label, sample.id)) for samples in found]


def _gestures(name: str, folder: Path) -> Parts:
    """DVS128 Gesture: a sample is line i of a labels file. Its id is 1000 user + 100 light + i, light counting in `LIGHTS`."""
    (users,) = published(name).values()
    found: Parts = [[], [], []]
    for trials in ("trials_to_train.txt", "trials_to_test.txt"):
        for trial in gesture.trials(_text(folder / trials), str(folder / trials)):
            part = next((part for part in range(3) if trial.user in users[part]), None)
            if part is None or (part == 2) != (trials == "trials_to_test.txt"):
                raise DataError(
                    f"{folder / trials}: {trial.name} is not where {name}'s split by users has it"
                )
            marks = folder / trial.name.replace(".aedat", "_labels.csv")
            for i, line in enumerate(gesture.labels(_text(marks), str(marks))):
                id = 1000 * trial.user + 100 * trial.light + i
                found[part].append(
                    Sample(folder / trial.name, line.label, id, (line.start, line.stop))
                )
    return found


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _spoken(source: Source, folder: Path) -> Parts:
    """SHD and SSC: `shd_train.h5`, `shd_test.h5`, and for SSC `ssc_valid.h5`; a sample's id is its number in its file."""
    file = {part: folder / f"{source.name}_{part}.h5" for part in ("train", "valid", "test")}
    listed = {
        part: [
            Sample(path, int(label), i)
            for i, label in enumerate(shd.labels(path, source.num_classes))
        ]
        for part, path in file.items()
        if path.exists()
    }
    if "valid" in listed:
        return [listed["train"], listed["valid"], listed["test"]]
    return [*_carved(source, listed["train"]), listed["test"]]
