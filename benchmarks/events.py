"""How fast are recordings read and counted into frames? Events per second, beside tonic and SpikingJelly where they are.

    python benchmarks/events.py [--peer-python PYTHON ...] [--repeats 9] [--events 200000] [--json FILE]

Peers live in environments of their own, named by their interpreters; one that is found in none of them is left out by name.
Each side is a process that stays; they take turns in every repetition, so that a disturbance meets all. Reading is from file to
arrays, counting from arrays to frames [10, 2, 128, 128]. What a side read is compared before anything is timed, what it cannot
read is said, and how many events its frames have lost.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

T, SIDE = 10, 128
TASKS = {
    "nmnist": "read, 5 bytes an event (N-MNIST)",
    "aedat2": "read, AEDAT 2.0 (DVS-CIFAR10)",
    "aedat3": "read, AEDAT 3.1 (DVS128 Gesture)",
    "time": "count, slices of equal time",
    "count": "count, slices of equal number",
}
Side = dict[str, Callable[[Any], Any]]


def backspike() -> Side:
    from backspike.data import Events, frames
    from backspike.data.formats import aedat2, aedat3, atis

    def events(e: dict[str, np.ndarray]) -> Events:
        return Events(e["x"], e["y"], e["t"], e["p"])

    return {
        "nmnist": lambda path: vars(atis.decode(Path(path).read_bytes())),
        "aedat2": lambda path: vars(aedat2.decode(Path(path).read_bytes())),
        "aedat3": lambda path: vars(aedat3.decode(Path(path).read_bytes())),
        "own": events,
        "time": lambda e: frames(e, T, SIDE),
        "count": lambda e: frames(e, T, SIDE, by="count"),
    }


def tonic() -> Side:
    import tonic.io
    from tonic.transforms import ToFrame

    dtype = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])

    def fields(a: np.ndarray) -> dict[str, np.ndarray]:
        return {name: a[name] for name in "xytp"}

    def mirrored(
        a: np.ndarray,
    ) -> dict[str, np.ndarray]:  # tonic leaves the address bits as they are
        return {
            "x": SIDE - 1 - a["x"],
            "y": SIDE - 1 - a["y"],
            "t": a["t"],
            "p": 1 - a["p"].astype(int),
        }

    def own(e: dict[str, np.ndarray]) -> np.ndarray:
        out = np.empty(len(e["t"]), dtype)
        for name in "xytp":
            out[name] = e[name]
        return out

    return {
        "nmnist": lambda path: fields(tonic.io.read_mnist_file(path, dtype)),
        "aedat2": lambda path: mirrored(tonic.io.read_dvs_128(path)[1]),
        "aedat3": lambda path: fields(tonic.io.read_dvs_ibm(path)[1]),
        "own": own,
        "time": ToFrame(sensor_size=(SIDE, SIDE, 2), n_time_bins=T),
        "count": ToFrame(sensor_size=(SIDE, SIDE, 2), n_event_bins=T),
    }


class StandIn(MetaPathFinder, Loader):
    """Takes the place of torchvision and torchaudio where they are missing: what is measured does not use them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        wanted = name.split(".")[0] in ("torchvision", "torchaudio")
        return ModuleSpec(name, self, is_package=True) if wanted else None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__getattr__ = self.anything  # type: ignore[method-assign]

    @staticmethod
    def anything(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def spikingjelly() -> Side:
    sys.meta_path.append(StandIn())
    from spikingjelly.datasets import cifar10_dvs, utils

    read = (
        getattr(cifar10_dvs, "_load_origin_data", None) or cifar10_dvs.CIFAR10DVS.load_origin_data
    )

    def frames(e: dict[str, np.ndarray], by: str) -> np.ndarray:
        return utils.integrate_events_by_fixed_frames_number(e, by, T, SIDE, SIDE)

    return {
        "nmnist": utils.load_ATIS_bin,
        "aedat2": read,
        "aedat3": utils.load_aedat_v3,
        "own": dict,
        "time": lambda e: frames(e, "time"),
        "count": lambda e: frames(e, "number"),
    }


SIDES = {"backspike": backspike, "tonic": tonic, "spikingjelly": spikingjelly}


def serve(name: str) -> None:
    """A side's process: for each line in, [task, path], what came of it and the seconds it took, as a line out."""
    out, sys.stdout = sys.stdout, sys.stderr
    side = SIDES[name]()
    print(json.dumps("ready"), file=out, flush=True)
    own: dict[str, Any] = {}
    for line in sys.stdin:
        task, path = json.loads(line)
        value = path
        if task in ("time", "count"):
            if path not in own:
                with np.load(path) as arrays:
                    own[path] = side["own"](dict(arrays))
            value = own[path]
        start = time.perf_counter()
        try:
            result = side[task](value)
        except Exception as error:
            print(json.dumps([None, f"{type(error).__name__}: {error}"]), file=out, flush=True)
            continue
        seconds = time.perf_counter() - start
        if isinstance(result, dict):
            seen: object = [
                int(np.sum(result[axis] * np.arange(1, 1 + len(result["t"])), dtype=np.int64))
                for axis in "xytp"
            ]
        else:
            seen = int(result.sum())
        print(json.dumps([seconds, seen]), file=out, flush=True)


class Process:
    """A side in its own interpreter."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, __file__, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if name == "backspike" else subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.works = self.process.stdout.readline() != ""

    def run(self, task: str, path: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([task, path]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed at: {TASKS[task]}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def files(folder: Path, n: int) -> dict[str, str]:
    """A made-up recording of n events in every format."""
    from backspike.data import Events
    from backspike.data.formats import aedat2, aedat3, atis

    rng = np.random.default_rng(0)
    x, y, p = (
        rng.integers(0, end, n).astype(dtype)
        for end, dtype in ((SIDE, "u2"), (SIDE, "u2"), (2, "u1"))
    )
    events = Events(x, y, np.sort(rng.integers(0, 1_300_000, n)), p)
    for name, data in (
        ("nmnist", atis.encode(events)),
        ("aedat2", aedat2.encode(events)),
        ("aedat3", aedat3.encode(events)),
    ):
        (folder / name).write_bytes(data)
    np.savez(folder / "events.npz", x=events.x, y=events.y, t=events.t, p=events.p)
    return {
        task: str(folder / (task if task in ("nmnist", "aedat2", "aedat3") else "events.npz"))
        for task in TASKS
    }


def sides(pythons: list[str]) -> list[Process]:
    """Ourselves, and every peer in the first interpreter that has it."""
    found = [Process("backspike", sys.executable)]
    for name in ("tonic", "spikingjelly"):
        tried = [Process(name, python) for python in pythons]
        works = [process for process in tried if process.works]
        found += works[:1]
        for process in tried:
            if process not in works[:1]:
                process.end()
        if not works:
            print(
                f"{name} is left out: not found in {' or '.join(pythons)}"
                if pythons
                else f"{name} is left out: no --peer-python"
            )
    return found


def measure(
    running: list[Process], paths: dict[str, str], n: int, repeats: int
) -> list[dict[str, Any]]:
    rows = []
    for task, path in paths.items():
        seen = {process.name: process.run(task, path)[1] for process in running}
        for name, value in seen.items():
            if isinstance(value, str):
                print(f"{TASKS[task]:36s} {name} cannot: {value}")
            if isinstance(value, list) and value != seen["backspike"]:
                sys.exit(f"{name} reads other events than backspike: {TASKS[task]}")
        able = [process for process in running if not isinstance(seen[process.name], str)]
        seconds: dict[str, list[float]] = {process.name: [] for process in able}
        for _ in range(repeats):
            for process in able:
                seconds[process.name].append(process.run(task, path)[0])
        for name, values in seconds.items():
            lost = n - seen[name] if task in ("time", "count") else 0
            rate = n / statistics.median(values) / 1e6
            rows.append(
                {
                    "task": task,
                    "side": name,
                    "million_events_per_second": rate,
                    "lost": lost,
                    "seconds": values,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    print(
        f"{options.events:,} events, median of {options.repeats}; Python {platform.python_version()}, NumPy {np.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        running = sides(options.peer_python)
        try:
            rows = measure(
                running, files(Path(folder), options.events), options.events, options.repeats
            )
        finally:
            for process in running:
                process.end()
    ours = {
        row["task"]: row["million_events_per_second"] for row in rows if row["side"] == "backspike"
    }
    for row in rows:
        rate = row["million_events_per_second"]
        lost = f"  {row['lost']:,} events lost" if row["lost"] else ""
        print(
            f"{TASKS[row['task']]:36s} {row['side']:13s} {rate:8.2f} M events/s  {ours[row['task']] / rate:7.1f} x{lost}"
        )
    if options.json:
        options.json.write_text(json.dumps({"events": options.events, "rows": rows}, indent=1))
    return None


if __name__ == "__main__":
    main()
