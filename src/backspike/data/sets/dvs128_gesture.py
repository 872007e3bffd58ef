"""DVS128 Gesture: eleven gestures under five lights, several in each recording of a DVS128 camera.

Text files tell which part of a recording shows which gesture, and which recordings are for testing:
`user01_led_labels.csv` has a title line and then lines `class,startTime_usec,endTime_usec`, classes
1 to 11; `trials_to_train.txt` and `trials_to_test.txt` have one file name `user01_led.aedat` per
line.
Amir et al. 2017, CVPR.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..events import Recordings
from ..formats import Events, aedat3, read_file
from ..samples import Sample, Samples
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
    """One recording; `light` is an index into `LIGHTS`."""

    name: str
    user: int
    light: int


def labels(data: bytes, name: str = "<bytes>") -> list[Gesture]:
    """The gestures in a labels file. Raises DataError with the byte offset of an invalid line."""
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
                "and the end must not precede the start",
            )
        out.append(Gesture(label - 1, start, stop))
    if not out:
        raise DataError.at(name, len(data), "truncated: no gestures")
    return out


def trials(data: bytes, name: str = "<bytes>") -> list[Trial]:
    """The recordings in a list of trials. Raises DataError with the byte offset of an invalid line.

    Paths are invalid, so no other folder is read.
    """
    out = []
    for at, line in _lines(data, name):
        match = RECORDING.fullmatch(line)
        if not match:
            raise DataError.at(
                name, at, f"{line[:60]!r} is not a recording user<number>_<light>.aedat"
            )
        out.append(Trial(line, int(match[1]), LIGHTS.index(match[2])))
    if not out:
        raise DataError.at(name, len(data), "truncated: no recordings")
    return out


def _lines(data: bytes, name: str) -> list[tuple[int, str]]:
    """(offset, text) of each non-blank line."""
    out, at = [], 0
    for raw in data.split(b"\n"):
        if raw.strip():
            try:
                out.append((at, raw.decode("ascii").strip()))
            except UnicodeDecodeError as error:
                raise DataError.at(name, at + error.start, "not ASCII text") from error
        at += len(raw) + 1
    return out


def _samples(source: Source, folder: Path) -> Samples:
    """One sample for each line i of a labels file, with id 1000 user + 100 light + i."""
    (users,) = published(source.name).values()
    found: Samples = [[], [], []]
    for listed in ("trials_to_train.txt", "trials_to_test.txt"):
        for trial in trials(read_file(folder / listed), str(folder / listed)):
            part = next((part for part in range(3) if trial.user in users[part]), None)
            if part is None or (part == 2) != (listed == "trials_to_test.txt"):
                raise DataError(
                    f"{folder / listed}: {trial.name} belongs to another part "
                    f"of {source.name}'s split by users"
                )
            marks = folder / trial.name.replace(".aedat", "_labels.csv")
            for i, line in enumerate(labels(read_file(marks), str(marks))):
                id = 1000 * trial.user + 100 * trial.light + i
                found[part].append(
                    Sample(folder / trial.name, line.label, id, (line.start, line.stop))
                )
    return found


def _events(path: Path, samples: Sequence[Sample]) -> Iterator[Events]:
    events = aedat3.decode(read_file(path), str(path))
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
    licence="CC BY 4.0",
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
