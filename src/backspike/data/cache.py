"""A cache that survives: what is published under a name is whole, whatever was killed, raced or damaged.

An entry is written beside its place under a temporary name and then renamed. Whoever reads checks; a damaged entry is
written again, with a notice. Where the cache folder cannot be written, a temporary folder serves for this process.
The folder is BACKSPIKE_CACHE, else `~/.cache/backspike`; it may be deleted at any time.
"""

import atexit
import contextlib
import functools
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import DataError

logger = logging.getLogger("backspike")
R = TypeVar("R")
ATTEMPTS = 3
LEFTOVER_SECONDS = 24 * 3600


def folder() -> Path:
    """The cache folder; it may not exist yet."""
    given = os.environ.get("BACKSPIKE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "backspike"


def cached(name: str, read: Callable[[Path], R], write: Callable[[Path], None]) -> R:
    """`read(path)` of the cache entry `name`, after `write(path)` where the entry is missing or `read` refuses it.

    `read` raises OSError or ValueError (thus DataError) for a damaged entry; `write` makes a file or a folder.
    Raises DataError when the entry can be written nowhere, or is refused as soon as it was written.
    """
    try:
        return _cached(folder() / name, read, write)
    except OSError as error:
        logger.warning(
            "cache %s cannot be used (%s): a temporary folder serves for this run",
            folder(),
            error.strerror,
        )
    try:
        return _cached(_temporary() / name, read, write)
    except OSError as error:
        raise DataError(
            f"no room for {name}: {error}; set BACKSPIKE_CACHE to a folder that can be written"
        ) from error


def _cached(path: Path, read: Callable[[Path], R], write: Callable[[Path], None]) -> R:
    for _ in range(
        ATTEMPTS
    ):  # more than one: another process may be replacing the entry while we read it
        if path.exists():
            try:
                return read(path)
            except (OSError, ValueError) as error:
                logger.warning("cache entry %s is damaged (%s): made again", path, error)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary = _beside(path)
        try:
            write(temporary)
            _sync(temporary)
            try:
                _publish(temporary, path)
            except OSError:  # a folder that another process published in this moment cannot be replaced: it will do
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


def _publish(temporary: Path, path: Path) -> None:
    """Rename onto `path`. A folder cannot replace another one: the old one is moved aside first."""
    if temporary.is_dir() and path.exists():
        aside = _beside(path)
        with contextlib.suppress(FileNotFoundError):  # another process moved it
            os.rename(path, aside)
            _remove(aside)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; folders only where the system can (not on Windows)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(
        f".backspike-{path.name}.{os.getpid()}@{platform.node()}.{time.time_ns()}.tmp"
    )


def _sweep(parent: Path) -> None:
    """Remove what killed processes left: of this machine at once, of others, whose processes are not seen, after a day."""
    for leftover in parent.glob(".backspike-*.tmp"):
        with contextlib.suppress(OSError):  # swept by another process
            if _abandoned(leftover):
                _remove(leftover)


def _abandoned(leftover: Path) -> bool:
    made_by = re.search(r"\.([0-9]+)@(.*)\.[0-9]+(\.wide)?\.tmp$", leftover.name)
    if made_by and made_by[2] == platform.node() and os.name == "posix":
        return not _lives(int(made_by[1]))
    return time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


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
