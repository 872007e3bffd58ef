"""Data sets: `load` returns fixed, published splits as NumPy arrays. `load` downloads nothing.

A split works as the data set of a PyTorch DataLoader. `catalogue` lists all data sets and their
files; `check` and `found` tell which of them are on this machine. Every error is a `DataError`
whose message says what to do. `sets/` has one file per data set.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from ..errors import DataError
from .formats import Events
from .formats.event_file import read_events
from .frames import By, Pixels, channels, frames
from .onsets import Onsets
from .own import OWN, own_source, pictures, recordings
from .picture_folder import Pictures
from .sets import SETS
from .source import File, Layout, Place, Source
from .split import Split, Splits

__all__ = [
    "DataError",
    "Events",
    "File",
    "Layout",
    "Onsets",
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
    "option_names",
    "pictures",
    "read_events",
    "recordings",
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
    """Loads data set `name`: images uint8 [N, C, H, W] or event counts [N, T, 2, H, W].

    Images in sequence are uint8 [N, T, values]; of sounds and points, counts are [N, T, channels].

    root: the folder of the files; default: BACKSPIKE_DATA, else `./data`.
    limit: keep only this many training samples, the first ones of a fixed order with balanced
    classes.
    T: number of time bins of event sets (default 10); of images in sequence and points as spike
    times, the number of timesteps (default: the set's).
    size: side or (height, width) of event frames (default: the sensor's); for sets whose events
    have a channel instead of a pixel, the number of channels, and counts are [N, T, size]; for
    picture folders, the side of the decoded picture (default 224).
    by: time bins of equal duration ("time") or with equally many events ("count"). For sets with
    channels, "time" divides a fixed duration.
    options: options of a single set, such as `upright=False` for "dvs-cifar10", or
    `speaker="theo"` for "spoken-digits".
    A folder of your own is "recordings:FOLDER" (`recordings`, with its options) or
    "pictures:FOLDER" (`pictures`).

    Sets too large for memory are decoded on access. `Source.options` names the options that a set
    takes. Raises DataError for an unknown name, for another set's options, and for missing or
    damaged files, and TypeError for an option that no set has.
    """
    entry = source(name)
    chosen = _choose_options(entry, {"T": T, "size": size, "by": by, **options})
    splits = entry.load(Place(root, official=_official_files()), **chosen)
    return splits if limit is None else splits.limited(limit)


def catalogue() -> list[Source]:
    """All data sets that `load` knows."""
    return list(SETS)


def source(name: str) -> Source:
    """The description of data set `name`, or of a folder "recordings:FOLDER", without reading it.

    Raises DataError with similar names if there is none.
    """
    for entry in (*SETS, own_source(name)):
        if entry is not None and entry.name == name:
            return entry
    names = [entry.name for entry in SETS]
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4) or names
    raise DataError(f"no data set {name!r}; did you mean {' or '.join(near)}?")


def found(name: str, root: str | os.PathLike[str] | None = None) -> tuple[Path, Layout] | None:
    """`Source.found` of data set `name`: the folder of its files, and their layout.

    Raises DataError if there is no such set.
    """
    return source(name).found(root)


def check(name: str, root: str | os.PathLike[str] | None = None) -> list[tuple[Path, str]]:
    """`Source.check` of data set `name`: (path, state) of each file.

    Raises DataError if there is no such set.
    """
    return source(name).check(root)


def option_names() -> list[str]:
    """The names of all options of data sets."""
    return sorted({name for entry in (*SETS, *OWN) for name in entry.options})


def _choose_options(entry: Source, options: dict[str, Any]) -> dict[str, Any]:
    """The options of `entry`, given or default. Options of other sets must have their default."""
    for option, value in options.items():
        sets = [other for other in (*SETS, *OWN) if option in other.options]
        owners = {other.name: other.options[option] for other in sets}
        if not owners:
            raise TypeError(f"no data set has an option {option!r}")
        if option not in entry.options and value not in owners.values():
            raise DataError(
                f"{entry.name} holds {entry.unit}: {option}={value!r} is for {', '.join(owners)}"
            )
    return {option: options.get(option, default) for option, default in entry.options.items()}


def _official_files() -> dict[str, str]:
    """MD5 -> the first data set with such a file."""
    return {
        file.md5: entry.name
        for entry in reversed(SETS)
        for layout in entry.layouts
        for file in layout.files
        if file.md5 is not None
    }
