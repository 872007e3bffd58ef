"""New files and arrays as samples, prepared as the data set that a network was trained on."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from .events import counting
from .formats import Events, npy, one_line, picture, read_file
from .formats.event_file import SUFFIXES as EVENTS
from .formats.event_file import as_events, read_events, read_own
from .own import OwnSource, cut, extent, in_order, of_sensor, windows
from .packed import narrowest
from .picture_folder import DEFAULT_SIZE
from .picture_folder import SUFFIXES as PICTURES
from .sets.sequential import Sequences
from .source import Source

Read = Callable[[Path], Any]
# a sample, and its window in microseconds if recordings are cut into windows
Piece = tuple[np.ndarray, tuple[int, int] | None]


class Inputs(Protocol):
    """Turns inputs into samples as `Split.x` holds them."""

    @property
    def pixels(self) -> bool:
        """As in `Split`."""

    def accepts(self, name: str) -> bool:
        """Whether a file of this name, found in a folder, is an input."""

    def pieces(self, value: Any, name: str) -> list[Piece]:
        """The samples of a path or of an array. name: for messages. Raises DataError."""


def inputs(source: Source | None, read: Read | None = None, **options: Any) -> Inputs:
    """Prepares inputs for a network that was trained on `source`, or (None) on a user's own data.

    read: a user's own function path -> events as for `recordings`, or path -> sample for own data.
    options: those of the set, as for `load`. Raises DataError for invalid ones.
    """
    if source is None:
        return OwnInputs(read)
    if source.kind == "events":
        return EventInputs(source, options, read)
    if read is not None:
        raise DataError(f"{source.name} holds {source.unit}: read= is for events and for own data")
    return ImageInputs(source, options)


@dataclass(frozen=True)
class OwnInputs:
    """Samples of a user's own data set: arrays, `.npy` files, or what `read` returns for a path."""

    read: Read | None
    pixels = False

    def accepts(self, name: str) -> bool:
        return self.read is not None or _suffix(name) == ".npy"

    def pieces(self, value: Any, name: str) -> list[Piece]:
        if isinstance(value, Path):
            value = self._load(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "uifb":
            raise DataError(f"{name}: expected a sample, an array of numbers")
        return [(_finite(value, name), None)]

    def _load(self, path: Path) -> Any:
        if self.read is None:
            if _suffix(path.name) != ".npy":
                raise DataError(
                    f"{path}: the network was trained on data of your own: give samples as .npy "
                    "files, or bs.Predictor(run, read=...) a function path -> sample"
                )
            return npy.decode(read_file(path), str(path))
        try:
            return np.asarray(self.read(path))
        except Exception as error:
            raise DataError(f"{path}: the read function failed ({one_line(error)})") from error


@dataclass(frozen=True)
class ImageInputs:
    """Pictures, scaled to the size of the set and in its colours; arrays of that shape."""

    source: Source
    options: Mapping[str, Any]

    @property
    def pixels(self) -> bool:
        return self.source.kind == "sequences"

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """[C, H, W] of a picture."""
        if "size" not in self.source.options:
            return self.source.shape
        side = self.options.get("size") or DEFAULT_SIZE
        return (3, side, side)

    def accepts(self, name: str) -> bool:
        return _suffix(name) in (*PICTURES, ".npy")

    def pieces(self, value: Any, name: str) -> list[Piece]:
        if isinstance(value, Path):
            data = read_file(value)
            value = npy.decode(data, name) if _suffix(name) == ".npy" else self._decode(data, name)
        x = np.asarray(value)
        if x.shape == self.shape[1:] and self.shape[0] == 1:
            x = x[None]
        if x.shape != self.shape or (x.dtype != np.uint8 and x.dtype.kind != "f"):
            raise DataError(
                f"{name}: an array {x.dtype} {list(x.shape)}: expected {list(self.shape)}, uint8 "
                "0 ... 255 or floats 0 ... 1"
            )
        if isinstance(self.source.read, Sequences):
            x = self.source.read.orders[self.options["T"]](x[None])[0]
        return [(_finite(x, name), None)]

    def _decode(self, data: bytes, name: str) -> np.ndarray:
        channels, height, width = self.shape
        part: Callable[[int, int], picture.Box] = picture.middle
        if isinstance(self.source, OwnSource):
            part = picture.square
        elif "size" not in self.source.options:

            def part(w: int, h: int) -> picture.Box:
                return picture.centred(w, h, width / height)

        return picture.decode(data, name, (height, width), part, channels)


@dataclass(frozen=True)
class EventInputs:
    """Recordings, binned as those of the set; counts of the shape of its samples."""

    source: Source
    options: Mapping[str, Any]
    read: Read | None
    pixels = False

    @cached_property
    def counted(self) -> tuple[Source, tuple[int, ...], Callable[[Events], np.ndarray]]:
        """The set with its sensor, the shape of a sample, and the function that computes it."""
        source, options = self.source, self.options
        if isinstance(source, OwnSource):
            source = of_sensor(source, options["sensor"], options["window"])
        T, size, by = options["T"], options.get("size"), options.get("by", "time")
        return source, *counting(source, T, size, by)

    def accepts(self, name: str) -> bool:
        return (
            self.read is not None
            or _suffix(name) in EVENTS
            or (self.source.decode is not None and _suffix(name) == ".wav")
        )

    def pieces(self, value: Any, name: str) -> list[Piece]:
        source, shape, count = self.counted
        if isinstance(value, Path):
            value = self._load(value)
        if isinstance(value, np.ndarray) and value.shape == shape and not value.dtype.names:
            return [(_finite(value, name), None)]
        events = as_events(value, name)
        if source.window is None or source.has_channels:
            return [(narrowest(self._count(count, events, name)), None)]
        ordered = in_order(events)
        return [
            (narrowest(self._count(count, cut(ordered, span, from_zero=True), name)), span)
            for span in windows(extent(events), source.window)
        ]

    def _load(self, path: Path) -> Any:
        suffix = _suffix(path.name)
        if self.read is not None:
            return read_own(self.read, path)
        if suffix == ".npy":
            return npy.decode(read_file(path), str(path))
        if self.source.decode is not None and suffix not in EVENTS:
            return self.source.decode(read_file(path), str(path))
        return read_events(path, upright=self.options.get("upright", True))

    @staticmethod
    def _count(count: Callable[[Events], np.ndarray], events: Events, name: str) -> np.ndarray:
        try:
            return count(events)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _finite(x: np.ndarray, name: str) -> np.ndarray:
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise DataError(f"{name}: holds NaN or infinity")
    return x
