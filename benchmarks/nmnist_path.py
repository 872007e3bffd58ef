"""Where N-MNIST's camera looked: the path of the simulated camera, measured on the real recordings.

    python benchmarks/nmnist_path.py [--root DATA] [--recordings 1000] [--rounds 6]

The digits are known, so ON minus OFF events of each pixel since the start say where the image is: together they are the change
of the log light. Starting from straight lines between seven points, each round simulates the recordings, compares ON minus OFF
since the start with the real ones every 6 ms, and corrects each position by least squares along the gradient of the light;
the dead zone of the pixels is thus accounted for. Prints the path, and what is left of the difference.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from simulated_events import SENSOR, recordings

from backspike.data import Events
from backspike.data.simulate import SACCADES, Camera, _luma, _view, record  # noqa: PLC2701  (parts of the camera)
from backspike.data.source import roots

CORNERS = (
    (0, -2.5, -1.8),
    (30, -2.5, -1.8),
    (78, -1.0, 3.6),
    (126, -0.5, 3.4),
    (186, 2.3, -1.5),
    (228, 2.8, -1.5),
    (288, -2.2, -1.8),
)
WINDOW, WINDOWS = 6.0, 52


def net(e: Events) -> np.ndarray:
    """ON minus OFF since the start, at the end of every window, in every pixel: [52, 34 * 34]."""
    cell = (
        np.minimum(e.t // int(1000 * WINDOW), WINDOWS - 1) * SENSOR**2
        + e.y.astype(int) * SENSOR
        + e.x
    )
    return (
        np.bincount(cell, 2.0 * e.p - 1, WINDOWS * SENSOR**2).reshape(WINDOWS, SENSOR**2).cumsum(0)
    )


def slopes(camera: Camera, image: np.ndarray) -> np.ndarray:
    """Events that a pixel more of x, or of y, would make: [52, 2, 34 * 34], at the ends of the windows."""
    (grey,) = _luma(image[None])

    def light(dx: float, dy: float) -> np.ndarray:
        path = tuple((t, x + dx, y + dy) for t, x, y in camera.path)
        _, rows, columns = _view(
            replace(camera, path=path, duration=WINDOW * WINDOWS, step=WINDOW), *grey.shape
        )
        return np.log1p(camera.contrast * (rows[1:] @ (1 - grey) @ columns[1:])).reshape(
            WINDOWS, -1
        )

    half = 0.25
    return np.stack([light(half, 0) - light(-half, 0), light(0, half) - light(0, -half)], 1) / (
        2 * half * camera.threshold
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    root = next(place for place in roots(given.root) if (place / "NMNIST").is_dir())
    images, _, ids, events = (part[: given.recordings] for part in recordings(root, "Train"))
    real = [net(e) for e in events]
    time = WINDOW * np.arange(WINDOWS + 1)
    at = np.stack([np.interp(time, *np.array(CORNERS).T[[0, 1 + axis]]) for axis in (0, 1)], 1)
    for number in range(given.rounds):
        camera = Camera(path=tuple((float(t), float(x), float(y)) for t, (x, y) in zip(time, at)))
        normal, right, left, whole = np.zeros((WINDOWS, 2, 2)), np.zeros((WINDOWS, 2)), 0.0, 0.0
        for image, i, wanted in zip(images, ids, real):
            g, rest = slopes(camera, image), wanted - net(record(image, 0, i, camera))
            normal += np.einsum("kap,kbp->kab", g, g)
            right += np.einsum("kap,kp->ka", g, rest)
            left, whole = left + (rest**2).sum(), whole + (wanted**2).sum()
        step = np.linalg.solve(normal, right[:, :, None])[:, :, 0]
        at[1:] += step
        print(
            f"round {number + 1}: {left / whole:.3f} of the square is left, largest correction {abs(step).max():.2f} pixels"
        )
    for name, column, used in zip("xy", at.T, np.array(SACCADES).T[1:]):
        print(
            f"{name}: {np.round(column, 2).tolist()}\n   {abs(column - used).max():.2f} away from the camera's at most"
        )


if __name__ == "__main__":
    main()
