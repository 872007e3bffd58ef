"""digits: UCI's handwritten digits, bundled; digits-dvs: recorded by the simulated event camera.

The split follows `split.stratified_order` over all 1,797 samples: 360 for testing, the next 180 for
validation, the rest for training.
"""

from pathlib import Path

import numpy as np

from ..simulate import Camera
from ..simulated import simulated
from ..source import Parts, Place, Source
from ..split import Split

FILE = Path(__file__).with_name("digits.npz")


def _read(source: Source, place: Place) -> Parts:
    """uint8 [N, 1, 8, 8], grey values 0..16 scaled to 0..255."""
    with np.load(FILE) as bundle:
        x = (bundle["x"].astype(np.uint16)[:, None] * 255 // 16).astype(np.uint8)
        whole = Split(x, bundle["y"].astype(np.int64), np.arange(len(x)))
        train, validation, test = (
            whole.take(np.flatnonzero(bundle["split"] == part)) for part in range(3)
        )
    return train, validation, test


DIGITS = Source(
    name="digits",
    kind="images",
    samples=(1257, 180, 360),
    num_classes=10,
    shape=(1, 8, 8),
    credit="E. Alpaydin, C. Kaynak 1998, UCI Machine Learning Repository, CC BY 4.0",
    licence="CC BY 4.0",
    home="https://archive.ics.uci.edu/dataset/80",
    read=_read,
    note="bundled",
)
# digits are 16 pixels high, as in N-MNIST; enlarging blurs them, so the threshold is lower
CAMERA = Camera(side=20.0, threshold=0.127, drift=0.21)
DIGITS_DVS = simulated(DIGITS, CAMERA, "digits-dvs", "the bundled digits", pad=1)
