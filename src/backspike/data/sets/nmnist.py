"""N-MNIST: a moving ATIS camera records the digits of MNIST."""

from ..events import Recordings
from ..formats import atis
from ..samples import list_by_number, one_per_file
from ..source import EVENT_OPTIONS, File, Layout, Source

NMNIST = Source(
    name="nmnist",
    kind="events",
    samples=(55000, 5000, 10000),
    num_classes=10,
    shape=(2, 34, 34),
    credit="G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor 2015, CC BY-SA 4.0",
    home="https://www.garrickorchard.com/datasets/n-mnist",
    read=Recordings(list_by_number, one_per_file(atis.decode)),
    layouts=(
        Layout(
            ("NMNIST", "N-MNIST", ""),
            (File("Train", recordings=60000), File("Test", recordings=10000)),
        ),
    ),
    options=EVENT_OPTIONS,
)
