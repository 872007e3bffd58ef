"""DVS128 Gesture: eleven gestures under five lights, many in one recording of a DVS128 camera.

Text files say which part of a recording is which gesture, and which recordings are for the test:
`user01_led_labels.csv` has a title line and then lines `class,startTime_usec,endTime_usec`, classes
1 to 11; `trials_to_train.txt` and `trials_to_test.txt` have a file name `user01_led.aedat` a line.
Amir et al. 2017, CVPR.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..events import Recordings
from ..formats import Events, aedat3
from ..recordings import Sample, Samples
from ..source import EVENT_OPTIONS, Archive, File, Layout, Source
from ..split import published

TITLE = "class,startTime_usec,endTime_usec"
CLASSES = 11
LIGHTS = ("fluorescent", "fluorescent_led", "lab", "led", "natural")
RECORDING = re.compile(rf"user(\d\d)_({'|'.join(LIGHTS)})\.aedat")


@dataclass(frozen=True)
class Gesture:
    """One gesture: class 0 to 10, microseconds [start, stop) of the recording."""

    label: int
    start: int
    stop: int


@dataclass(frozen=True)
class Trial:
    """One recording; `light` counts in `LIGHTS`."""

    name: str
    user: int
    light: int


def labels(data: bytes, name: str = "<bytes>") -> list[Gesture]:
    """The gestures of a labels file. Raises DataError naming the byte of a line that is none."""
    out = []
    for number, (at, line) in enumerate(_lines(data, name)):
        if number == 0:
            if line.replace(" ", "") != TITLE:
                raise DataError.at(name, at, f"the first line is {line[:60]!r}, not {TITLE!r}")
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or not all(re.fullmatch("[0-9]{1,18}", field) for field in fields):
            raise DataError.at(
                name, at, f"{line[:60]!r} is not three whole numbers: class, start, end"
            )
        label, start, stop = map(int, fields)
        if not 1 <= label <= CLASSES or start > stop:
            raise DataError.at(
                name,
                at,
                f"class {label} from {start} to {stop}: classes are 1 to {CLASSES}, "
                "an end follows its start",
            )
        out.append(Gesture(label - 1, start, stop))
    if not out:
        raise DataError.at(name, len(data), "truncated: no gestures")
    return out


def trials(data: bytes, name: str = "<bytes>") -> list[Trial]:
    """The recordings of a list of trials. Raises DataError naming the byte of a line with no name.

    A path is no name: no other folder is read.
    """
    out = []
    for at, line in _lines(data, name):
        match = RECORDING.fullmatch(line)
        if not match:
            raise DataError.at(
                name, at, f"{line[:60]!r} is no recording user<number>_<light>.aedat"
            )
        out.append(Trial(line, int(match[1]), LIGHTS.index(match[2])))
    if not out:
        raise DataError.at(name, len(data), "truncated: no recordings")
    return out


def _lines(data: bytes, name: str) -> list[tuple[int, str]]:
    """(offset, text) of the lines that are not blank."""
    out, at = [], 0
    for raw in data.split(b"\n"):
        if raw.strip():
            try:
                out.append((at, raw.decode("ascii").strip()))
            except UnicodeDecodeError as error:
                raise DataError.at(
                    name, at + error.start, "no text: a byte beyond ASCII"
                ) from error
        at += len(raw) + 1
    return out


def _samples(source: Source, folder: Path) -> Samples:
    """A sample is line i of a labels file; its id is 1000 user + 100 light + i (see `LIGHTS`)."""
    (users,) = published(source.name).values()
    found: Samples = [[], [], []]
    for listed in ("trials_to_train.txt", "trials_to_test.txt"):
        for trial in trials(_bytes(folder / listed), str(folder / listed)):
            part = next((part for part in range(3) if trial.user in users[part]), None)
            if part is None or (part == 2) != (listed == "trials_to_test.txt"):
                raise DataError(
                    f"{folder / listed}: {trial.name} is not where "
                    f"{source.name}'s split by users has it"
                )
            marks = folder / trial.name.replace(".aedat", "_labels.csv")
            for i, line in enumerate(labels(_bytes(marks), str(marks))):
                id = 1000 * trial.user + 100 * trial.light + i
                found[part].append(
                    Sample(folder / trial.name, line.label, id, (line.start, line.stop))
                )
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _events(path: Path, samples: Sequence[Sample]) -> Iterator[Events]:
    events = aedat3.decode(path.read_bytes(), str(path))
    for sample in samples:
        assert sample.span is not None
        inside = (events.t >= sample.span[0]) & (events.t < sample.span[1])
        yield Events(events.x[inside], events.y[inside], events.t[inside], events.p[inside])


ARCHIVE = Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1")
DVS128_GESTURE = Source(
    name="dvs128-gesture",
    kind="events",
    samples=(1020, 156, 288),
    num_classes=CLASSES,
    shape=(2, 128, 128),
    credit="A. Amir et al. 2017, CC BY 4.0",
    home="https://research.ibm.com/interactive/dvsgesture",
    read=Recordings(_samples, _events),
    layouts=(
        Layout(
            (
                "DvsGesture",
                "DVS128Gesture/DvsGesture",
                "DVS128Gesture/extract/DvsGesture",
                "DVSGesture/DvsGesture",
                "",
            ),
            (
                File("trials_to_train.txt", archive=ARCHIVE),
                File("trials_to_test.txt", archive=ARCHIVE),
                File(".", recordings=122, pattern="user*.aedat", archive=ARCHIVE),
            ),
        ),
    ),
    options=EVENT_OPTIONS,
)
