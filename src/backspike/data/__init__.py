"""Data sets: `load` gives fixed, published splits as NumPy arrays; nothing is downloaded.

A split works as the data set of a PyTorch DataLoader. `catalogue` lists all sets and the files that
they take, `check` and `found` say what is on this machine; every error is a `DataError` whose
message says what to do. `sets/` has a file per data set.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from ..errors import DataError
from .formats import Events
from .frames import By, Pixels, channels, frames
from .pictures import Pictures
from .sets import SETS
from .source import File, Layout, Place, Source
from .split import Split, Splits

__all__ = [
    "DataError",
    "Events",
    "File",
    "Layout",
    "Pictures",
    "Source",
    "Split",
    "Splits",
    "catalogue",
    "channels",
    "check",
    "found",
    "frames",
    "load",
    "source",
]


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    T: int | None = None,
    size: Pixels | None = None,
    limit: int | None = None,
    by: By = "time",
    **options: Any,
) -> Splits:
    """The data set `name`: images uint8 [N, C, H, W] or event counts [N, T, 2, H, W].

    `root`: where its files are, else BACKSPIKE_DATA, else `./data`. `limit`: keep the first so many
    training samples of a fixed order with balanced classes. A set takes those of the other options
    that its `Source.options` names. Event sets: `T` time bins (10), `size` of the frames, a side or
    (height, width) (the sensor's), `by` equal "time" or equal "count" of events. Where events have
    a channel and no pixel: counts [N, T, size], and equal time divides a fixed length. Sets too
    large for memory: pictures are decoded when they are asked for, at side `size` (224). Further
    options are those of a single set, such as `upright=False` of "dvs-cifar10".
    Raises DataError for an unknown name, for options of other sets, for missing or damaged files.
    """
    entry = source(name)
    chosen = _chosen(entry, {"T": T, "size": size, "by": by, **options})
    splits = entry.load(Place(root, official=_official()), **chosen)
    return splits if limit is None else splits.limited(limit)


def catalogue() -> list[Source]:
    """All data sets that `load` knows."""
    return list(SETS)


def source(name: str) -> Source:
    """The data set `name`, not read. Raises DataError, with the nearest names, if there is none."""
    for entry in SETS:
        if entry.name == name:
            return entry
    names = [entry.name for entry in SETS]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4) or names
    raise DataError(f"no data set {name!r}; did you mean {' or '.join(near)}?")


def found(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Path, Layout] | None:
    """`Source.found` of the data set `name`: the folder of its files, and their layout."""
    return source(name).found(root)


def check(name: str, root: str | os.PathLike[str] | None = None) -> list[tuple[Path, str]]:
    """`Source.check` of the data set `name`: (path, state) of every file."""
    return source(name).check(root)


def _chosen(entry: Source, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `entry`, as given or by default; others may only be given at their default."""
    for option, value in options.items():
        owners = {other.name: other.options[option] for other in SETS if option in other.options}
        if not owners:
            raise TypeError(f"no data set has an option {option!r}")
        if option not in entry.options and value not in owners.values():
            raise DataError(
                f"{entry.name} holds {entry.kind}: {option}={value!r} is for {', '.join(owners)}"
            )
    return {option: options.get(option, default) for option, default in entry.options.items()}


def _official() -> dict[str, str]:
    """MD5 sum -> the first data set that has such a file."""
    return {
        file.md5: entry.name
        for entry in reversed(SETS)
        for layout in entry.layouts
        for file in layout.files
        if file.md5 is not None
    }
