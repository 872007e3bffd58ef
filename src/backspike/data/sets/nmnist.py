"""N-MNIST: a moving ATIS camera records the digits of MNIST."""

from ..events import Recordings
from ..formats import atis
from ..samples import list_by_number, one_per_file
from ..source import EVENT_OPTIONS, Archive, File, Layout, Source

_FILES = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
_TRAIN = Archive(
    "Train.zip",
    "20959b8e626244a1b502305a9e6e2031",
    (f"{_FILES}/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",),
)
_TEST = Archive(
    "Test.zip",
    "69ca8762b2fe404d9b9bad1103e97832",
    (f"{_FILES}/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",),
)

NMNIST = Source(
    name="nmnist",
    kind="events",
    samples=(55000, 5000, 10000),
    num_classes=10,
    shape=(2, 34, 34),
    credit="G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor 2015, CC BY-SA 4.0",
    home="https://www.garrickorchard.com/datasets/n-mnist",
    licence="CC BY-SA 4.0",
    read=Recordings(list_by_number, one_per_file(atis.decode)),
    layouts=(
        Layout(
            ("NMNIST", "N-MNIST", ""),
            (
                File("Train", recordings=60000, archive=_TRAIN),
                File("Test", recordings=10000, archive=_TEST),
            ),
        ),
    ),
    options=EVENT_OPTIONS,
)
