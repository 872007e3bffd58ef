"""A cache whose entries are always complete, even after crashes, races and damage.

An entry is written under a temporary name beside its place and then renamed. Readers verify
entries; a damaged one is rewritten, with a warning. If the cache folder cannot be written, a
temporary folder is used for this process.
The folder is BACKSPIKE_CACHE, else `~/.cache/backspike`; you may delete it at any time.
"""

import atexit
import contextlib
import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import DataError
from ..system import disk

logger = logging.getLogger("backspike")
R = TypeVar("R")
ATTEMPTS = 3


def folder() -> Path:
    """The cache folder; it may not exist yet."""
    given = os.environ.get("BACKSPIKE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "backspike"


def cached(name: str, read: Callable[[Path], R], write: Callable[[Path], None]) -> R:
    """Returns `read(path)` of cache entry `name`, after `write(path)` if missing or damaged.

    `read` raises OSError or ValueError (DataError is one) for a damaged entry; `write` creates a
    file or a folder. Raises DataError if neither the cache folder nor a temporary folder can hold
    the entry, or if it is damaged right after writing.
    """
    try:
        return _cached(folder() / name, read, write)
    except OSError as error:
        reason = error.strerror or str(error)
    temporary = _temporary()
    try:
        out = _cached(temporary / name, read, write)
    except OSError as error:
        raise DataError(
            f"{name} fits neither into the cache {folder()} ({reason}) nor into {temporary} "
            f"({error.strerror or error}); free some space, or set BACKSPIKE_CACHE to a folder "
            "that can be written"
        ) from error
    logger.warning(
        "cache %s cannot be used (%s): %s is in the temporary folder %s for this run",
        folder(),
        reason,
        name,
        temporary,
    )
    return out


def _cached(path: Path, read: Callable[[Path], R], write: Callable[[Path], None]) -> R:
    damaged = None
    for _ in range(ATTEMPTS):
        while (entry := _identity(path)) not in (None, damaged):
            try:
                return read(path)
            except (OSError, ValueError) as error:
                if _identity(path) != entry:
                    continue  # another process replaced it while we read it
                logger.warning("cache entry %s is damaged (%s): writing it again", path, error)
                damaged = entry
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary = _temporary_name(path)
        try:
            write(temporary)
            disk.sync(temporary)
            try:
                if _identity(path) in (None, damaged):
                    _publish(temporary, path)
            except OSError:
                # a folder that another process has just published cannot be replaced: use it
                if not path.exists():
                    raise
        finally:
            _remove(temporary)
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cache entry {path} is refused after {ATTEMPTS} attempts: {error}"
        ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells an entry from another one of the same name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _publish(temporary: Path, path: Path) -> None:
    """Renames to `path`. A folder cannot replace another one, so the old one is moved first."""
    if temporary.is_dir() and path.exists():
        aside = _temporary_name(path)
        with contextlib.suppress(FileNotFoundError):  # another process moved it
            os.rename(path, aside)
            _remove(aside)
    disk.replace(temporary, path)
    disk.sync(path.parent)


def _temporary_name(path: Path) -> Path:
    """A new hidden name beside `path`, which tells process and machine."""
    return disk.temporary(path.with_name(f"backspike-{path.name}.{time.time_ns()}"))


def _sweep(parent: Path) -> None:
    """Removes temporary files and folders that no living process will finish."""
    for leftover in parent.glob(".backspike-*.tmp"):
        with contextlib.suppress(OSError):  # another process swept it
            if disk.is_abandoned(leftover):
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _temporary() -> Path:
    path = tempfile.mkdtemp(prefix="backspike-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)
