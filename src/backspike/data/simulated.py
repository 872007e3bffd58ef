"""Image sets before the simulated event camera, as files like those of N-MNIST.

Made on first use in the cache, in N-MNIST's layout and format (`Train|Validation|Test/<class>/<id>.bin`, ids and split those
of the images), so that they are read by the reader of the real recordings. Every class of a part is an entry of the cache,
made in a process of its own: a simulation that was stopped goes on with the classes that are missing. `SHA256SUMS` lists the
recordings of an entry; the sums are compared on every use, and an entry that differs is made again.
"""

import hashlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..system.machine import ONE_THREAD, processors
from ..system.workers import Worker, WorkerFailed, environment
from . import cache
from .cache import cached
from .events import Recordings
from .formats import atis
from .progress import progress
from .recordings import numbered, one_a_file
from .simulate import Camera, record_all
from .source import EVENT_OPTIONS, Parts, Place, Source
from .split import Splits

logger = logging.getLogger("backspike")
VERSION = 2
SUMS = "SHA256SUMS"
TOGETHER = 8  # images simulated at once
NUMBERED = Recordings(numbered, one_a_file(atis.decode))  # the files of N-MNIST
SERIAL_IMAGES = 2_000  # starting processes takes longer than simulating so many


@dataclass(frozen=True)
class Simulated:
    """Reads a set of images before a camera, with a margin of `pad` empty pixels around each."""

    images: Source
    camera: Camera
    pad: int = 0

    def __call__(self, source: Source, place: Place, **options: Any) -> Parts:
        images = self.images.load(Place(place.root, official=place.official))
        folder = self.folder(source.name, images)
        return NUMBERED(source, Place(folder=folder), **options)

    def folder(self, name: str, images: Splits) -> Path:
        """The folder of the recordings, complete and verified; simulates what is missing."""
        entry = self.entry_name(name, images)
        if not (cache.folder() / entry).is_dir():
            logger.info("simulating %s, once, in %s", name, cache.folder())
        made = {path.parent.parent for path in _made(entry, list(self._jobs(name, images)))}
        if len(made) > 1:
            raise DataError(
                f"no room for all of {entry}; set BACKSPIKE_CACHE to a folder that can be written"
            )
        return made.pop()

    def entry_name(self, name: str, images: Splits) -> str:
        """The name of the folder in the cache: it changes with the images and with the camera."""
        how = f"Set(images={self.images.name!r}, camera={self.camera}, pad={self.pad}) {VERSION}"
        digest = hashlib.sha256(how.encode())
        for split in (images.train, images.validation, images.test):
            for array in (split.x, split.y, split.ids):
                digest.update(np.ascontiguousarray(array).data)
        return f"{name}-{digest.hexdigest()[:16]}"

    def _jobs(self, name: str, images: Splits) -> "Iterator[_Job]":
        for part, split in enumerate((images.train, images.validation, images.test)):
            for label in np.unique(split.y):
                (index,) = np.nonzero(split.y == label)
                x, ids = split.x[index], split.ids[index]
                yield _Job(name, part, int(label), x, ids, self.camera, self.pad)


def simulated(images: Source, camera: Camera, name: str, note: str, pad: int = 0) -> Source:
    """The event set `name`: the set `images` before this camera. `note`: from what it is made."""
    return replace(
        images,
        name=name,
        kind="events",
        shape=(2, camera.size, camera.size),
        read=Simulated(images, camera, pad),
        options=EVENT_OPTIONS,
        note=f"simulated: made on first use from {note}",
    )


@dataclass(frozen=True)
class _Job:
    """The recordings of one class of one part: `<part>/<label>/<id>.bin`. The part and the id seed what is random."""

    name: str
    part: int
    label: int
    x: np.ndarray
    ids: np.ndarray
    camera: Camera
    pad: int

    @property
    def place(self) -> str:
        return f"{('Train', 'Validation', 'Test')[self.part]}/{self.label}"

    def write(self, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        x = np.pad(self.x, ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)))
        sums = []
        for first in range(0, len(x), TOGETHER):
            ids = self.ids[first : first + TOGETHER].tolist()
            for id, events in zip(
                ids, record_all(x[first : first + TOGETHER], self.part, ids, self.camera)
            ):
                data = atis.encode(events)
                (target / f"{id:05d}.bin").write_bytes(data)
                sums.append(f"{hashlib.sha256(data).hexdigest()}  {id:05d}.bin\n")
        (target / SUMS).write_text("".join(sums))

    def verified(self, target: Path) -> Path:
        lines = (target / SUMS).read_text().splitlines()
        listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
        held = {path.name for path in target.glob("*.bin")}
        if held != listed.keys() or held != {f"{id:05d}.bin" for id in self.ids}:
            raise DataError(
                f"{len(held)} recordings and {len(listed)} sums instead of {len(self.ids)}"
            )
        for path, digest in listed.items():
            if hashlib.sha256((target / path).read_bytes()).hexdigest() != digest:
                raise DataError(f"{path} differs from its sum")
        return target


def _made(entry: str, jobs: list[_Job]) -> list[Path]:
    """The entries of all jobs, in processes where there is enough to do."""
    images = sum(len(job.ids) for job in jobs)
    alone = images <= SERIAL_IMAGES or not sys.executable
    pool = ThreadPoolExecutor(1 if alone else processors())
    workers: list[Worker] = []

    def ready(job: _Job) -> Path:
        def write(target: Path) -> None:
            with Worker(env=environment(**ONE_THREAD), quiet=True) as worker:
                workers.append(worker)
                _simulate(worker, job, target)

        return cached(
            f"{entry}/{job.place}", read=job.verified, write=job.write if alone else write
        )

    try:
        with progress(f"recordings of {jobs[0].name}", images) as advance:
            made = []
            for job, path in zip(jobs, pool.map(ready, jobs)):
                made.append(path)
                advance(len(job.ids))
            return made
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.process.kill()
        pool.shutdown()


def _simulate(worker: Worker, job: _Job, target: Path) -> None:
    try:
        worker.call(job.write, target)
    except WorkerFailed as e:
        raise DataError(f"simulating {job.name}, {job.place} failed ({e}): run it again") from None
