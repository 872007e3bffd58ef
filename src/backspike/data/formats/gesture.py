"""The text files of DVS128 Gesture: which part of a recording is which gesture, and which recordings are for the test.

`user01_led_labels.csv` has a title line and then lines `class,startTime_usec,endTime_usec`, classes 1 to 11;
`trials_to_train.txt` and `trials_to_test.txt` have a file name `user01_led.aedat` a line. Amir et al. 2017, CVPR.
"""

import re
from dataclasses import dataclass

from ...errors import DataError

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
    """The gestures of a labels file, in its order. Raises DataError naming the byte of the first line that is none."""
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
                f"class {label} from {start} to {stop}: classes are 1 to {CLASSES}, an end follows its start",
            )
        out.append(Gesture(label - 1, start, stop))
    if not out:
        raise DataError.at(name, len(data), "truncated: no gestures")
    return out


def trials(data: bytes, name: str = "<bytes>") -> list[Trial]:
    """The recordings of a list of trials. Raises DataError naming the byte of a line that names none (a path never does)."""
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
