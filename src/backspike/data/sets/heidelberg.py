"""SHD and SSC (Heidelberg): spoken words as spikes in 700 channels of a model cochlea."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..events import Recordings
from ..formats import Events, hdf5
from ..samples import Sample, Samples, carve_samples
from ..source import EVENT_OPTIONS, Archive, File, Layout, Source

CHANNELS = 700
MIRRORS = ("https://zenkelab.org/datasets", "https://compneuro.net/datasets")


def _samples(source: Source, folder: Path) -> Samples:
    """Samples of `<name>_train.h5`, `<name>_test.h5`, and for SSC `<name>_valid.h5`, by number."""
    listed = {
        part: [
            Sample(path, int(label), i)
            for i, label in enumerate(hdf5.labels(path, source.num_classes))
        ]
        for part in ("train", "valid", "test")
        if (path := folder / f"{source.name}_{part}.h5").exists()
    }
    if "valid" in listed:
        return [listed["train"], listed["valid"], listed["test"]]
    return [*carve_samples(source, listed["train"]), listed["test"]]


def _events(path: Path, samples: Sequence[Sample]) -> Iterator[Events]:
    return hdf5.decode(path, [sample.id for sample in samples], CHANNELS)


def _layouts(folders: tuple[str, ...], *archives: tuple[str, str]) -> tuple[Layout, ...]:
    files = tuple(
        File(
            name,
            archive=Archive(f"{name}.zip", md5, tuple(f"{m}/{name}.zip" for m in MIRRORS)),
        )
        for name, md5 in archives
    )
    return (Layout((*folders, "hdspikes", ""), files),)


SHD = Source(
    name="shd",
    kind="events",
    samples=(7341, 815, 2264),
    num_classes=20,
    shape=(1, 1, CHANNELS),
    credit="B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke 2020, CC BY 4.0",
    home="https://zenkelab.org/datasets",
    licence="CC BY 4.0",
    read=Recordings(_samples, _events),
    window=1_400_000,
    layouts=_layouts(
        ("SHD", "shd"),
        ("shd_train.h5", "f3252aeb598ac776c1b526422d90eecb"),
        ("shd_test.h5", "1503a5064faa34311c398fb0a1ed0a6f"),
    ),
    options=EVENT_OPTIONS,
)
SSC = replace(
    SHD,
    name="ssc",
    samples=(75466, 9981, 20382),
    num_classes=35,
    window=1_000_000,
    layouts=_layouts(
        ("SSC", "ssc"),
        ("ssc_train.h5", "d102be95e7144fcc0553d1f45ba94170"),
        ("ssc_valid.h5", "b4eee3516a4a90dd0c71a6ac23a8ae43"),
        ("ssc_test.h5", "a35ff1e9cffdd02a20eb850c17c37748"),
    ),
)
