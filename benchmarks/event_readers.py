"""Million events per second of the readers of recordings, beside those of other libraries.

    python benchmarks/event_readers.py [--events 2000000] [--rounds 5]

Writes one recording in each format and reads it with every reader in turn, so that a slow moment of
the machine meets all of them; prints the best of all rounds, by processor time. Readers of other
libraries (`pip install expelliarmus aedat faery`) are left out where they are missing.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from backspike.data import Events, read_events
from backspike.data.formats import aedat2, aedat3, aedat4, dat, evt2, evt3

FORMATS = {
    "dat": (dat.encode, "dat"),
    "evt2": (evt2.encode, "raw"),
    "evt3": (evt3.encode, "raw"),
    "aedat4": (aedat4.encode, "aedat4"),
    "aedat3": (aedat3.encode, "aedat"),
    "aedat2": (aedat2.encode, "aedat"),
}


def recording(n: int) -> Events:
    """Bursts of neighbouring events, within the 128 pixels and 16 s that every format can hold."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 128, (2, n))
    return Events(x, y, np.sort(rng.integers(0, 16_000_000, n)), rng.integers(0, 2, n))


def readers(kind: str, path: Path) -> dict[str, Callable[[], int]]:
    """Name -> a function that reads the file and returns the number of events."""
    out: dict[str, Callable[[], int]] = {"backspike": lambda: len(read_events(path))}
    peers = {"expelliarmus": expelliarmus, "faery": faery, "aedat": aedat}
    for name, read in peers.items():
        try:
            library = import_module(name)
            read(library, kind, path)
        except Exception:  # not installed, or another format
            continue
        out[name] = partial(read, library, kind, path)
    return out


def expelliarmus(library, kind, path):
    wizard = library.Wizard(encoding=kind)
    wizard.set_file(path)
    return len(wizard.read())


def faery(library, kind, path):
    return sum(map(len, library.events_stream_from_file(path)))


def aedat(library, kind, path):
    return sum(len(packet["events"]) for packet in library.Decoder(str(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    events = recording(options.events)
    with tempfile.TemporaryDirectory() as folder:
        for kind, (encode, suffix) in FORMATS.items():
            path = Path(folder, f"{kind}.{suffix}")
            path.write_bytes(encode(events))
            best: dict[str, float] = {}
            found = readers(kind, path)
            for _ in range(options.rounds):
                for name, read in found.items():
                    start = time.process_time()
                    assert read() == options.events
                    seconds = time.process_time() - start
                    best[name] = min(seconds, best.get(name, seconds))
            rates = (f"{name} {options.events / s / 1e6:.1f}" for name, s in best.items())
            print(f"{kind:8s}million events/s: {', '.join(rates)}", flush=True)


if __name__ == "__main__":
    main()
