"""The samples of event sets: which part each recording belongs to, in the usual layouts of files.

The parts are the official ones where there are such, else those published in `data/splits`; what is
carved out for validation follows `split.carve` or the same list.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .formats import Events
from .source import Source
from .split import published


@dataclass(frozen=True)
class Sample:
    """One recording, or one of many in a file: number `id`, or the microseconds in `span`."""

    path: Path
    label: int
    id: int
    span: tuple[int, int] | None = None


Samples = list[list[Sample]]  # of train, validation, test
# (path, samples in this file, **options) -> their events; it can be pickled
Reader = Callable[..., Iterator[Events]]


def one_a_file(decode: Callable[..., Events]) -> Reader:
    """Reads files with one recording each by `decode(bytes, name, **options)`."""
    return partial(_one_a_file, decode)


def _one_a_file(
    decode: Callable[..., Events], path: Path, samples: Sequence[Sample], **options: Any
) -> Iterator[Events]:
    yield decode(path.read_bytes(), str(path), **options)


def numbered(source: Source, folder: Path) -> Samples:
    """`Train|Test/<class>/<number>.bin`; `Validation` where it exists, else carved from Train."""
    train, test = _numbered_in(folder / "Train"), _numbered_in(folder / "Test")
    if (folder / "Validation").is_dir():
        return [train, _numbered_in(folder / "Validation"), test]
    return [*carved(source, train), test]


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


def carved(source: Source, train: list[Sample]) -> Samples:
    """Training and validation samples, of the official ones for training."""
    parts = source.carve(np.array([sample.label for sample in train]))
    return [[train[i] for i in part] for part in parts]


def by_class(pattern: str, source: Source, folder: Path) -> Samples:
    """`<class>/<file>` with a number in the file's name: parts by class and number, as published.

    pattern: of the names; {} stands for the class, * for the number.
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
