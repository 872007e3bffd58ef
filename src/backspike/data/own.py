"""Your own folders as data sets: `recordings` of an event camera, and `pictures`.

Recipes and `load` call them `recordings:FOLDER` and `pictures:FOLDER`. Which files belong to which
class and part: see `folder.py`; how a recording is read: `formats/event_file.py`.
"""

import hashlib
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, option
from . import packed
from .binning import Binning
from .cache import cached
from .events import Recordings, cache_key, write_rows
from .folder import Found, list_folder, split_by_file
from .formats import Events, picture
from .formats.event_file import SUFFIXES, read_events, read_own
from .frames import By, Pixels
from .picture_folder import DEFAULT_SIZE, Pictures
from .picture_folder import SUFFIXES as PICTURES
from .samples import Sample
from .source import EVENT_OPTIONS, Place, Source
from .split import Split, Splits

Read = Callable[[Path], Any]
CREDIT = "own data"
LARGEST_SIDE = 1 << 16
_PLAIN = (int, float, str, bytes, tuple, Path, type(None))  # do not change between calls


@dataclass(frozen=True)
class OwnSource(Source):
    """A folder of the user's, which `read(folder, **options)` reads as a whole.

    suffixes: of the files in it.
    """

    suffixes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.name.partition(":")[2]).expanduser()

    def counted(self) -> "OwnSource":
        """The same with the numbers of its files and classes. Raises DataError."""
        parts, classes = _listed(self.folder, self.suffixes)
        train, validation, test = map(len, parts)
        return replace(self, samples=(train, validation, test), num_classes=len(classes))

    def load(self, place: Place, **options: Any) -> Splits:
        return replace(self.read(self.folder, **options), name=self.name)


def recordings(
    folder: str | os.PathLike[str],
    read: Read | None = None,
    *,
    sensor: Sequence[int],
    T: int | None = None,
    window: int | None = None,
    size: Pixels | None = None,
    by: By = "time",
) -> Splits:
    """Your own recordings of an event camera as a data set: counts [N, T, 2, H, W].

    Args:
        folder: a folder for each class, or a list of recordings; see `data/folder.py`.
        read: your own function path -> events, instead of `bs.data.read_events`: it returns
            `bs.data.Events`, a structured array with the fields x, y, t, p, an array [N, 4] of
            these, or a dict of them. A change to the file that defines it causes new frames.
        sensor: (height, width) in pixels.
        T: number of time bins; default 10.
        window: cut recordings into consecutive samples of so many microseconds, each divided into T
            bins of equal duration. A shorter rest at the end is left out, but a recording gives at
            least one sample. None: a recording is one sample, and its bins divide the time between
            its first and its last event.
        size: (height, width) of the frames, or both as one number; default: the sensor's.
        by: bins of equal duration ("time") or with equally many events ("count").

    The parts are split by file, never by window; `ids` are the numbers of the recordings. Frames
    are counted once and cached. Raises DataError for damaged files, with the file and the byte
    offset, and for invalid options.
    """
    folder = Path(folder)
    source = of_sensor(RECORDINGS, sensor, window)
    parts, classes = _listed(folder, None if read else SUFFIXES)
    version = _version(read) if read else ""
    root = folder if folder.is_dir() else folder.parent
    found = [f for part in parts for f in part]
    extents = _extents(root, found, read, version) if source.window else {}
    label = {c: i for i, c in enumerate(classes)}
    numbers = {path: i for i, path in enumerate(sorted({f.path for f in found}))}
    samples = [
        [
            Sample(f.path, label[f.category], numbers[f.path], span)
            for f in part
            for span in _spans(f, extents, source.window)
        ]
        for part in parts
    ]
    reader = Recordings(
        lambda source, folder: samples,
        partial(_read_spans, read),
        f" {source.shape}{version}",
        alone=read is not None,
    )
    train, validation, test = reader(source, Place(folder=root), T, size, by, window=source.window)
    return Splits(source.name, train, validation, test, len(classes), True, "", CREDIT, classes)


def pictures(folder: str | os.PathLike[str], size: int | None = None) -> Splits:
    """Your own pictures as a data set: uint8 [N, 3, size, size], decoded on access.

    folder: a folder for each class; see `data/folder.py`. size: the side to which the largest
    centred square of a picture is scaled; default 224. Raises DataError.
    """
    folder = Path(folder)
    size = DEFAULT_SIZE if size is None else size
    if not isinstance(size, int) or size < 1:
        raise DataError(f"size={size}: pictures are square, with a side of at least 1")
    parts, classes = _listed(folder, PICTURES)
    root = folder if folder.is_dir() else folder.parent
    label = {c: i for i, c in enumerate(classes)}
    first, splits = 0, []
    for part in parts:
        names = np.array([os.fsencode(os.path.relpath(f.path, root)) for f in part], np.bytes_)
        y = np.array([label[f.category] for f in part], np.int64)
        x: Any = Pictures(root, names, size, picture.square)
        splits.append(Split(x, y, np.arange(first, first + len(part))))
        first += len(part)
    train, validation, test = splits
    return Splits("pictures", train, validation, test, len(classes), False, "", CREDIT, classes)


def of_sensor(source: Source, sensor: Sequence[int], window: int | None) -> Source:
    """`source` with the sensor's shape and the window. Raises DataError if they are invalid."""
    sides = tuple(sensor)
    if len(sides) != 2 or not all(
        isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in sides
    ):
        raise DataError(
            f"recordings need the height and width of the sensor in pixels, such as "
            f"{option('sensor', (128, 128))}; got {sides}"
        )
    if window is not None and (not isinstance(window, int) or window < 0):
        raise DataError(f"window={window!r}: expected microseconds, a whole number")
    return replace(source, shape=(2, *sides), window=window or None)


def _listed(
    folder: Path, suffixes: Collection[str] | None
) -> tuple[list[list[Found]], tuple[str, ...]]:
    """The files of a folder by part, and the classes. suffixes: None for any."""

    def accept(name: str) -> bool:
        return suffixes is None or os.path.splitext(name)[1].lower() in suffixes

    return split_by_file(list_folder(folder, accept))


def _version(read: Read) -> str:
    """Changes with a user's function: the file that defines it and plain values bound to it."""
    code = getattr(read, "__code__", None)
    if code is None:
        raise DataError(f"read must be a function path -> events, got a {type(read).__name__}")
    try:
        text = Path(inspect.getfile(read)).read_bytes()
    except OSError:
        try:
            text = inspect.getsource(read).encode()  # a notebook
        except OSError:  # typed into an interpreter
            text = repr((code.co_code, code.co_consts, code.co_names)).encode()
    bound = [cell.cell_contents for cell in getattr(read, "__closure__", None) or ()]
    bound += [*(getattr(read, "__defaults__", None) or ())]
    bound += (getattr(read, "__kwdefaults__", None) or {}).values()
    values = repr([v if isinstance(v, _PLAIN) else type(v).__name__ for v in bound])
    return f" {read.__qualname__} {hashlib.sha256(text + values.encode()).hexdigest()}"


def _load(read: Read | None, path: Path) -> Events:
    return read_own(read, path) if read else read_events(path)


def extent(events: Events) -> tuple[int, int]:
    """The time of the first event, and just after the last one; (0, 0) without events."""
    return (int(events.t.min()), int(events.t.max()) + 1) if len(events) else (0, 0)


def _extents(
    folder: Path, found: list[Found], read: Read | None, version: str
) -> Mapping[Path, tuple[int, int]]:
    """The extent of each recording that has no span, counted once and cached."""
    paths = dict.fromkeys(f.path for f in found if f.span is None)
    if not paths:
        return {}
    samples = [Sample(path, 0, i) for i, path in enumerate(paths)]
    shape = (len(samples), 2)
    binning = Binning(
        "recordings",
        samples,
        _extent_row,
        partial(_read_spans, read, window=None),
        alone=read is not None,
    )
    rows = cached(
        f"recordings-extents-{cache_key(folder, samples, version)}.npy",
        read=partial(packed.read, shape=shape),
        write=partial(write_rows, shape=shape, binning=binning),
    )
    return {path: (int(first), int(end)) for path, (first, end) in zip(paths, rows)}


def _extent_row(events: Events) -> np.ndarray:
    return np.array(extent(events))


def _spans(
    f: Found, extents: Mapping[Path, tuple[int, int]], window: int | None
) -> Sequence[tuple[int, int] | None]:
    return [f.span] if window is None else windows(f.span or extents[f.path], window)


def windows(span: tuple[int, int], window: int) -> list[tuple[int, int]]:
    """Consecutive windows in a span, without a shorter rest; at least one."""
    start, end = span
    starts = range(start, max(start + 1, end - window + 1), window)
    return [(first, first + window) for first in starts]


def _read_spans(
    read: Read | None, path: Path, samples: Sequence[Sample], window: int | None
) -> Iterator[Events]:
    """The events of the samples in one file. Times of windows count from their start."""
    events = _load(read, path)
    spans = [sample.span for sample in samples]
    if any(span is not None for span in spans):
        events = in_order(events)
    for span in spans:
        yield events if span is None else cut(events, span, from_zero=window is not None)


def in_order(events: Events) -> Events:
    """The events sorted by time."""
    if (events.t[:-1] <= events.t[1:]).all():
        return events
    order = np.argsort(events.t, kind="stable")
    return Events(events.x[order], events.y[order], events.t[order], events.p[order])


def cut(events: Events, span: tuple[int, int], *, from_zero: bool) -> Events:
    """The events in [start, end) of a recording in order. from_zero: t counts from the start."""
    first, stop = np.searchsorted(events.t, span)
    x, y, t, p = (a[first:stop] for a in (events.x, events.y, events.t, events.p))
    return Events(x, y, t - span[0] if from_zero else t, p)


RECORDINGS = OwnSource(
    name="recordings",
    kind="events",
    samples=(0, 0, 0),
    num_classes=0,
    shape=(2, 0, 0),
    credit=CREDIT,
    home="",
    read=recordings,
    options={**EVENT_OPTIONS, "sensor": (), "window": 0},
    suffixes=SUFFIXES,
)
PICTURE_FOLDER = replace(
    RECORDINGS,
    name="pictures",
    kind="images",
    shape=(3, 0, 0),
    read=pictures,
    options={"size": None},
    suffixes=PICTURES,
)
OWN = (RECORDINGS, PICTURE_FOLDER)


def own_source(name: str) -> Source | None:
    """The set `recordings:FOLDER` or `pictures:FOLDER`; None for other names."""
    kind, colon, folder = name.partition(":")
    for source in OWN if colon else ():
        if source.name == kind:
            if not folder:
                raise DataError(f"{name!r} names no folder; write {kind}:FOLDER")
            return replace(source, name=name)
    return None
