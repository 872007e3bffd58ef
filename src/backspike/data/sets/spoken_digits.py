"""The Free Spoken Digit Dataset: six speakers say the digits 0 to 9, fifty times each.

Z. Jackson et al. 2018, doi:10.5281/zenodo.1342401. The recordings (8 kHz) become spikes in 80
channels by `Onsets`. No speaker is in two parts: `speaker` is the one of the test samples, the one
before in alphabetical order (the last one before the first) validates, the other four train. T bins
divide the first second; the events of the few longer recordings count in the last bin.
"""

import re
from functools import partial
from pathlib import Path

from ...errors import DataError
from ..events import Recordings
from ..formats import Events, wav
from ..onsets import Onsets
from ..samples import Sample, Samples, one_per_file
from ..source import EVENT_OPTIONS, Archive, File, Layout, Parts, Place, Source

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
ENCODER = Onsets()
RATE = 8000
WINDOW = 1_000_000
NAMED = re.compile(rf"([0-9])_({'|'.join(SPEAKERS)})_([0-9]{{1,3}})\.wav")


def _read(source: Source, place: Place, speaker: str, **options: object) -> Parts:
    if speaker not in SPEAKERS:
        raise DataError(f"no speaker {speaker!r} in {source.name}: {', '.join(SPEAKERS)}")
    read = Recordings(partial(_samples, speaker), one_per_file(_events))
    return read(source, place, **options)  # type: ignore[arg-type]


def _samples(speaker: str, source: Source, folder: Path) -> Samples:
    """Samples of `<digit>_<speaker>_<number>.wav`; ids are 1,000 * speaker + number."""
    found: Samples = [[], [], []]
    test = SPEAKERS.index(speaker)
    for path in sorted((folder / "recordings").glob("*.wav")):
        match = NAMED.fullmatch(path.name)
        if match is None:
            raise DataError(
                f"{path}: a recording is not named <digit>_<speaker>_<number>.wav, "
                f"with the speakers {', '.join(SPEAKERS)}"
            )
        who = SPEAKERS.index(match[2])
        part = {test: 2, (test - 1) % len(SPEAKERS): 1}.get(who, 0)
        found[part].append(Sample(path, int(match[1]), 1000 * who + int(match[3])))
    return [sorted(samples, key=lambda sample: (sample.label, sample.id)) for samples in found]


def _events(data: bytes, name: str) -> Events:
    sound, rate = wav.decode(data, name)
    if rate != RATE:
        raise DataError(f"{name}: {rate:,} samples a second instead of {RATE:,}")
    return ENCODER(sound, rate)


ARCHIVE = Archive(
    "free-spoken-digit-dataset-master.zip",
    None,  # the archive is made from the repository
    ("https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",),
)
SPOKEN_DIGITS = Source(
    name="spoken-digits",
    kind="events",
    samples=(2000, 500, 500),
    num_classes=10,
    shape=(1, 1, ENCODER.channels),
    credit="Z. Jackson et al. 2018, CC BY-SA 4.0",
    licence="CC BY-SA 4.0",
    home="https://github.com/Jakobovski/free-spoken-digit-dataset",
    read=_read,
    layouts=(
        Layout(
            ("fsdd", "free-spoken-digit-dataset", "free-spoken-digit-dataset-master", ""),
            (File("recordings", recordings=3000, pattern="*.wav", archive=ARCHIVE),),
        ),
    ),
    options={**EVENT_OPTIONS, "speaker": SPEAKERS[-1]},
    window=WINDOW,
    decode=_events,
)
