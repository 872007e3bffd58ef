"""The samples of event sets, and the part of the split that each recording belongs to.

The parts are the official ones if there are any, else those published in `data/splits`. Validation
samples follow the same list, or `split.carve`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .formats import Events, read_file
from .source import Source
from .split import published


@dataclass(frozen=True)
class Sample:
    """One recording, or one of many in a file: number `id`, or the `span` in microseconds."""

    path: Path
    label: int
    id: int
    span: tuple[int, int] | None = None


# of train, validation, test
Samples = list[list[Sample]]
# (path, samples in this file, **options) -> their events; must be picklable
Reader = Callable[..., Iterator[Events]]


def one_per_file(decode: Callable[..., Events]) -> Reader:
    """A reader of files with one recording each, by `decode(bytes, name, **options)`."""
    return partial(_read_one, decode)


def _read_one(
    decode: Callable[..., Events], path: Path, samples: Sequence[Sample], **options: Any
) -> Iterator[Events]:
    yield decode(read_file(path), str(path), **options)


def list_by_number(source: Source, folder: Path) -> Samples:
    """Lists `Train|Test/<class>/<number>.bin`.

    Validation samples are in `Validation` if it exists, else they are split off `Train`.
    """
    train, test = (_list_part(source, folder / part) for part in ("Train", "Test"))
    if (folder / "Validation").is_dir():
        return [train, _list_part(source, folder / "Validation"), test]
    return [*carve_samples(source, train), test]


def _list_part(source: Source, folder: Path) -> list[Sample]:
    found = []
    for path in folder.glob("[!.]*/*.bin"):
        label, number = path.parent.name, path.stem
        if not (
            re.fullmatch("[0-9]{1,9}", label)
            and re.fullmatch("[0-9]{1,9}", number)
            and int(label) < source.num_classes
        ):
            raise DataError(
                f"{path}: a recording is not named <class number>/<number>.bin, "
                f"with class numbers from 0 to {source.num_classes - 1}"
            )
        found.append(Sample(path, int(label), int(number)))
    if not found:
        raise DataError(f"{folder}: no recordings <class number>/<number>.bin")
    return sorted(found, key=lambda sample: (sample.id, sample.label))


def carve_samples(source: Source, train: list[Sample]) -> Samples:
    """Splits official training samples into [train, validation]."""
    parts = source.carve(np.array([sample.label for sample in train]))
    return [[train[i] for i in part] for part in parts]


def list_by_class(pattern: str, source: Source, folder: Path) -> Samples:
    """Lists `<class>/<file>` with a number in the file name; parts follow the published split.

    pattern: of the file names; {} stands for the class, * for the number.
    """
    found: Samples = [[], [], []]
    for label, (category, ids) in enumerate(published(source.name).items()):
        named = pattern.format(category)
        number = re.compile(re.escape(named).replace(r"\*", "([0-9]{1,6})"))
        for path in (folder / category).glob(f"*{named[named.rindex('.') :]}"):
            match = number.fullmatch(path.name)
            part = next((part for part in range(3) if match and int(match[1]) in ids[part]), None)
            if match is None or part is None:
                raise DataError(
                    f"{path}: not among the recordings {category}/{named} of "
                    f"{source.name}'s published split"
                )
            found[part].append(Sample(path, label, int(match[1])))
    return [sorted(samples, key=lambda sample: (sample.label, sample.id)) for samples in found]
