"""Shared by the tests: parts of what was in test_recordings.py."""

import numpy as np

from backspike.data import Events
from backspike.data.formats import aedat2, aedat3, atis
from backspike.data.split import published


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def some_events(seed, n=40, height=128, width=128, duration=1000):
    rng = np.random.default_rng(seed)
    x, y, p = rng.integers(0, width, n), rng.integers(0, height, n), rng.integers(0, 2, n)
    return Events(x, y, np.sort(rng.integers(0, duration, n)), p)


def dvs_cifar10(folder, numbers=(0, 809, 810, 899, 900, 999)):
    made = {}
    for label, name in enumerate(published("dvs-cifar10")):
        for number in numbers:
            made[label, number] = events = some_events(1000 * label + number)
            write(folder / name / f"cifar10_{name}_{number}.aedat", aedat2.encode(events))
    return made


def n_caltech101(folder):
    made = {}
    for label, (name, parts) in enumerate(published("n-caltech101").items()):
        for part in parts:
            made[label, part[0]] = events = some_events(
                1000 * label + part[0], height=180, width=240
            )
            write(folder / name / f"image_{part[0]:04d}.bin", atis.encode(events))
    return made


TRAIN = (
    "user01_fluorescent",
    "user01_fluorescent_led",
    "user20_natural",
    "user21_lab",
    "user23_led",
)


TEST = ("user24_led", "user29_natural")


def gestures(folder):
    made = {}
    for seed, name in enumerate((*TRAIN, *TEST)):
        events = some_events(seed, 4000, duration=3_000_000)
        made[name] = events
        rows = "".join(
            f"{c},{c * 200_000},{c * 200_000 + 150_000 + c}\r\n" for c in (1, 2, 8, 8, 11)
        )
        write(folder / f"{name}.aedat", aedat3.encode(events, packet=1000))
        write(
            folder / f"{name}_labels.csv", b"class,startTime_usec,endTime_usec\r\n" + rows.encode()
        )
    for part, names in (("train", TRAIN), ("test", TEST)):
        write(
            folder / f"trials_to_{part}.txt", "".join(f"{name}.aedat\n" for name in names).encode()
        )
    return made


def spoken(folder, name, part, n, classes, dtype="float16"):
    import h5py

    rng = np.random.default_rng(n)
    times = [np.sort(rng.uniform(0, 1, rng.integers(1, 90))).astype(dtype) for _ in range(n)]
    units = [rng.integers(0, 700, len(t)).astype(np.uint16) for t in times]
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{name}_{part}.h5", "w") as file:
        for key, arrays, kind in (("times", times, dtype), ("units", units, "uint16")):
            member = file.create_dataset(
                f"spikes/{key}", (n,), dtype=h5py.vlen_dtype(np.dtype(kind))
            )
            for i, array in enumerate(arrays):
                member[i] = array
        file["labels"] = (np.arange(n) % classes).astype(np.uint8)
        file["extra/speaker"] = np.zeros(n, np.uint8)
    return times, units
