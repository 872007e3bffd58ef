"""The files in a folder of the user's: their classes, and the part that each file belongs to.

A folder has a folder for each class, or such folders in `train`, `test` and perhaps `validation`
(also `val`; without `test`, it is the test set, as in ImageNet). Or a list `recordings.csv`, whose
first line is `file,start,end,label` in any order: paths relative to the list, microseconds or
nothing (the whole file), and a class; a column `part` may name the part.

Without given parts, a fifth of the files is for testing and a tenth for validation, the first ones
of `split.stratified_order`. Without given validation files, a tenth of the training files is split
off. All of a file is in one part, so that no recording is trained on and tested with.
"""

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import DataError
from .formats import read_file
from .split import stratified_order

LIST = "recordings.csv"
PARTS = {"train": 0, "training": 0, "validation": 1, "val": 1, "valid": 1, "test": 2, "testing": 2}
COLUMNS = ("file", "start", "end", "label", "part")


@dataclass(frozen=True)
class Found:
    """A file, or the span of microseconds [start, end) in it. part: 0 to 2; None if not given."""

    path: Path
    category: str
    span: tuple[int, int] | None = None
    part: int | None = None


def list_folder(folder: Path, accept: Callable[[str], bool]) -> list[Found]:
    """All files of a folder, or of a list of files. accept: tells by its name whether to take one.

    Raises DataError for a folder or list that is not as described above.
    """
    if folder.suffix.lower() == ".csv" and folder.is_file():
        return _read_list(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / LIST).is_file():
        return _read_list(folder / LIST)
    names = _folders(folder)
    parts = {name: PARTS[name.lower()] for name in names if name.lower() in PARTS}
    if 0 not in parts.values() or len(set(parts.values())) == 1:
        return _by_class(folder, accept)
    if others := sorted(set(names) - set(parts)):
        raise DataError(
            f"{folder}: a folder {others[0]} beside {', '.join(parts)}; move it into one"
        )
    if 2 not in parts.values():
        parts = {name: 2 if part else 0 for name, part in parts.items()}
    return [
        replace(found, part=part)
        for name, part in parts.items()
        for found in _by_class(folder / name, accept)
    ]


def _folders(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _by_class(folder: Path, accept: Callable[[str], bool]) -> list[Found]:
    out = []
    for category in _folders(folder):
        files = [p for p in sorted((folder / category).rglob("[!.]*")) if p.is_file()]
        taken = [Found(path, category) for path in files if accept(path.name)]
        if not taken:
            raise DataError(f"{folder / category}: none of its {len(files)} files can be read")
        out += taken
    if not out:
        raise DataError(
            f"{folder}: no folders in it; put each file into the folder of its class, "
            f"or list them in {LIST}"
        )
    return out


def _read_list(path: Path) -> list[Found]:
    try:
        lines = list(csv.reader(read_file(path).decode("utf-8").splitlines(), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a list of recordings ({error})") from error
    names = [name.strip().lower() for name in lines[0]] if lines else []
    if not {"file", "label"} <= set(names) or not set(names) <= set(COLUMNS):
        raise DataError(
            f"{path}: line 1: expected the columns file,start,end,label, not {','.join(names)[:60]}"
        )
    out = []
    for number, line in enumerate(lines[1:], 2):
        if any(line):
            if len(line) != len(names):
                raise DataError(f"{path}: line {number}: {len(line)} values, not {len(names)}")
            row = dict(zip(names, (word.strip() for word in line)))
            out.append(_row(path.parent, row, f"{path}: line {number}"))
    if not out:
        raise DataError(f"{path}: it lists no recordings")
    return out


def _row(folder: Path, row: dict[str, str], where: str) -> Found:
    if not row["file"] or not row["label"]:
        raise DataError(f"{where}: a file and a label are needed")
    path = folder / row["file"]
    if not path.is_file():
        raise DataError(f"{where}: {path} does not exist or is not a file")
    part = row.get("part", "").lower()
    if part and part not in PARTS:
        raise DataError(f"{where}: part {part!r}: expected train, validation or test")
    span = None
    start, end = row.get("start", ""), row.get("end", "")
    if start or end:
        if not all(re.fullmatch("[0-9]{1,18}", text) for text in (start, end)):
            raise DataError(f"{where}: start and end must be whole microseconds, or both empty")
        span = int(start), int(end)
        if span[0] >= span[1]:
            raise DataError(f"{where}: it ends at {end}, before its start at {start}")
    return Found(path, row["label"], span, PARTS[part] if part else None)


def split_by_file(found: list[Found]) -> tuple[list[list[Found]], tuple[str, ...]]:
    """[train, validation, test], and the classes, sorted by number or else by name.

    Raises DataError for a file in two parts, a class without training files, and too few files.
    """
    classes = sorted({f.category for f in found}, key=_natural)
    files: dict[Path, Found] = {}
    for f in found:
        if files.setdefault(f.path, f).part != f.part:
            raise DataError(f"{f.path}: a file must be in one part only")
    given = {f.part for f in files.values()}
    if None in given and len(given) > 1:
        raise DataError("some files have a part and others have none")
    label = {c: i for i, c in enumerate(classes)}
    y = np.array([label[f.category] for f in files.values()])
    part = np.array([f.part or 0 for f in files.values()])
    if None in given:
        part = _hold_out(y, part, 2, 5)
    if 1 not in part:
        part = _hold_out(y, part, 1, 10 if None not in given else 8)
    of = dict(zip(files, part.tolist()))
    parts = [[f for f in found if of[f.path] == k] for k in range(3)]
    if not parts[2]:
        raise DataError("no files are for testing; give some the part test")
    if missing := set(classes) - {f.category for f in parts[0]}:
        raise DataError(f"class {min(missing)!r} has no files for training")
    return parts, tuple(classes)


def _hold_out(y: np.ndarray, part: np.ndarray, k: int, divisor: int) -> np.ndarray:
    """Gives one in `divisor` of the training files (part 0) to part k, but no class's last one."""
    (train,) = np.nonzero(part == 0)
    left, out = np.bincount(y[train]), part.copy()
    wanted = max(1, round(len(train) / divisor))
    for i in train[stratified_order(y[train], seed=0)]:
        if wanted and left[y[i]] > 1:
            left[y[i]] -= 1
            wanted -= 1
            out[i] = k
    if k not in out:
        raise DataError(
            f"{len(y)} files in {len(left)} classes are too few to hold some out for validation "
            "and testing; add files"
        )
    return out


def _natural(name: str) -> tuple[int, str]:
    return (int(name), name) if re.fullmatch("[0-9]{1,18}", name) else (1 << 62, name)
