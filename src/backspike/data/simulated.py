"""Image sets recorded by the simulated event camera, in files like those of N-MNIST.

Recordings are simulated on first use and cached in N-MNIST's layout and format
(`Train|Validation|Test/<class>/<id>.bin`, with the ids and the split of the images), so the reader
of the real recordings reads them. Each class of each part is one cache entry, made in its own
process: an interrupted simulation continues with the missing classes. `SHA256SUMS` lists the
recordings of an entry; the sums are verified on every use, and a damaged entry is simulated again.
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
from .samples import list_by_number, one_per_file
from .simulate import Camera, record_all
from .source import EVENT_OPTIONS, Parts, Place, Source
from .split import Splits

logger = logging.getLogger("backspike")
VERSION = 2
SUMS = "SHA256SUMS"
# number of images simulated at once
TOGETHER = 8
# the files of N-MNIST
NUMBERED = Recordings(list_by_number, one_per_file(atis.decode))
# starting processes takes longer than simulating this many images
SERIAL_IMAGES = 2_000


@dataclass(frozen=True)
class Simulated:
    """Reads an image set recorded by a camera, with `pad` empty pixels around each image."""

    images: Source
    camera: Camera
    pad: int = 0

    def __call__(self, source: Source, place: Place, **options: Any) -> Parts:
        images = self.images.load(Place(place.root, official=place.official))
        folder = self.folder(source.name, images)
        return NUMBERED(source, Place(folder=folder), **options)

    def folder(self, name: str, images: Splits) -> Path:
        """The folder of the complete, verified recordings; simulates missing ones.

        Raises DataError if the simulation fails or the cache has no room.
        """
        entry = self.entry_name(name, images)
        if not (cache.folder() / entry).is_dir():
            logger.info("simulating %s, once, in %s", name, cache.folder())
        made = {path.parent.parent for path in _simulate_all(entry, list(self._jobs(name, images)))}
        if len(made) > 1:
            raise DataError(
                f"the cache {cache.folder()} has no room for all of {entry}; free some space, or "
                "set BACKSPIKE_CACHE to a folder on another disk"
            )
        return made.pop()

    def entry_name(self, name: str, images: Splits) -> str:
        """The name of the folder in the cache, which depends on the images and the camera."""
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
    """The event set `name`: the set `images`, recorded by `camera`. note: what it is made from."""
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
    """Simulates one class of one part: `<part>/<label>/<id>.bin`, seeded by part and id."""

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

    def verify(self, target: Path) -> Path:
        """Returns `target`. Raises DataError or OSError if it is incomplete or damaged."""
        lines = (target / SUMS).read_text().splitlines()
        listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
        present = {path.name for path in target.glob("*.bin")}
        if present != listed.keys() or present != {f"{id:05d}.bin" for id in self.ids}:
            raise DataError(
                f"{len(present)} recordings and {len(listed)} checksums instead of {len(self.ids)}"
            )
        for path, digest in listed.items():
            if hashlib.sha256((target / path).read_bytes()).hexdigest() != digest:
                raise DataError(f"the checksum of {path} is wrong")
        return target


def _simulate_all(entry: str, jobs: list[_Job]) -> list[Path]:
    """Simulates the jobs that are not cached, in processes if there are many; returns paths."""
    images = sum(len(job.ids) for job in jobs)
    alone = images <= SERIAL_IMAGES or not sys.executable
    pool = ThreadPoolExecutor(1 if alone else processors())
    workers: list[Worker] = []

    def ready(job: _Job) -> Path:
        def write(target: Path) -> None:
            with Worker(env=environment(**ONE_THREAD), quiet=True) as worker:
                workers.append(worker)
                _simulate(worker, job, target)

        return cached(f"{entry}/{job.place}", read=job.verify, write=job.write if alone else write)

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
