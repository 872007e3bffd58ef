"""Data sets: `load` gives fixed, published splits as NumPy arrays; nothing is downloaded.

A split works as the data set of a PyTorch DataLoader. `catalogue` says what there is and which files it takes, `check` and
`found` what is on this machine; every error is a `DataError` whose message names the cure.
"""

import os

from ..errors import DataError
from . import events, pictures, simulated, static
from .formats import Events
from .frames import By, Pixels, channels, frames
from .pictures import Pictures
from .sources import File, Layout, Source, catalogue, check, found, missing, source
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
    upright: bool = True,
) -> Splits:
    """The data set `name` of `catalogue()`: images uint8 [N, C, H, W] or event counts [N, T, 2, H, W].

    `root`: where its files are, else BACKSPIKE_DATA, else `./data`. Event sets only: `T` time bins (10), `size` of the
    frames, a side or (height, width) (the sensor's), `by` equal "time" or equal "count" of events. SHD and SSC have channels
    instead of pixels: counts [N, T, size], and equal time is that of 1.4 s (SSC: 1 s). ImageNet: pictures are decoded when
    they are asked for, at side `size` (224). `upright=False`: pixels and polarity of DVS-CIFAR10 as the camera addressed
    them. `limit`: keep the first so many training samples of a fixed order with balanced classes.
    Raises DataError for an unknown name, for missing or damaged files.
    """
    entry = source(name)
    if entry.kind == "images" and (
        T is not None or by != "time" or (size is not None and name != "imagenet")
    ):
        raise DataError(
            f"{name} holds images: T, size and by are for event recordings (digits-dvs, nmnist)"
        )
    if not upright and name != "dvs-cifar10":
        raise DataError(f"upright=False is for dvs-cifar10: {name} has one orientation")
    place = found(name, root)
    if entry.layouts and place is None:
        raise missing(name, root)
    if name == "digits":
        parts = static.digits()
    elif name in simulated.SETS:
        recordings = simulated.folder(name, load(simulated.SETS[name].images, root))
        parts = events.load(entry, recordings, T, size, by)
    else:
        assert place is not None
        if name == "imagenet":
            parts = pictures.load(entry, place[0], size)
        elif entry.kind == "events":
            parts = events.load(entry, place[0], T, size, by, upright)
        else:
            parts = static.load(entry, *place)
    held, official = sum(map(len, parts)), sum(entry.samples)
    part = f"{held:,} of {official:,} samples" if held != official else ""
    note = "; ".join(filter(None, (entry.note, part)))
    num_classes = (
        1 + max(int(part.y.max(initial=0)) for part in parts)
        if name == "imagenet"
        else entry.num_classes
    )
    splits = Splits(name, *parts, num_classes, entry.kind == "events", note, entry.credit)
    return splits if limit is None else splits.limited(limit)
