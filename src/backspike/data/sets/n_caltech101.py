"""N-Caltech101: a moving ATIS camera records the pictures of Caltech101."""

from functools import partial

from ..events import Recordings
from ..formats import atis
from ..samples import list_by_class, one_per_file
from ..source import EVENT_OPTIONS, Archive, File, Layout, Source

ARCHIVE = Archive(
    "Caltech101.zip",
    "66201824eabb0239c7ab992480b50ba3",
    (
        "https://data.mendeley.com/public-files/datasets/cy6cvx3ryv/files/"
        "36b5c52a-b49d-4853-addb-a836a8883e49/file_downloaded",
    ),
)
N_CALTECH101 = Source(
    name="n-caltech101",
    kind="events",
    samples=(7063, 823, 823),
    num_classes=101,
    shape=(2, 180, 240),
    credit="G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor 2015, CC BY-SA 4.0",
    home="https://www.garrickorchard.com/datasets/n-caltech101",
    licence="CC BY-SA 4.0",
    read=Recordings(partial(list_by_class, "image_*.bin"), one_per_file(atis.decode)),
    layouts=(
        Layout(
            (
                "N-Caltech101/Caltech101",
                "NCaltech101/Caltech101",
                "NCaltech101/extract/Caltech101",
                "Caltech101",
                "",
            ),
            (
                File(
                    ".",
                    recordings=8709,
                    pattern="*/image_*.bin",
                    archive=ARCHIVE,
                ),
            ),
        ),
    ),
    options=EVENT_OPTIONS,
)
