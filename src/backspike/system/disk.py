"""Flushing, renaming, locking and temporary names, on every kind of file system.

Covers local disks, the network file systems of clusters (some lack locks or fsync of folders) and
Windows (no fcntl, folders cannot be opened, open files cannot be replaced).
"""

from __future__ import annotations

import errno
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# this folder or file system cannot be flushed; there is nothing more that we can do for the data
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_RENAME_ATTEMPTS = 10
LEFTOVER_SECONDS = 24 * 3600
POSIX = os.name == "posix"


class Locked(Exception):
    """The lock is taken. The message names the owner if it is known."""


def sync(path: Path) -> None:
    """Flushes a file or a folder's directory entries to disk; skips folders if unsupported."""
    folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if folder:  # Windows cannot open folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as e:
        if not folder or e.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def replace(source: Path, target: Path) -> None:
    """Renames source to target atomically.

    Windows cannot replace a file that another program (a virus scanner, a viewer) has open, so
    there we retry for about a second.
    """
    for attempt in range(_RENAME_ATTEMPTS):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if POSIX or attempt == _RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.02 * (attempt + 1))


def temporary(path: Path) -> Path:
    """A hidden file name next to `path` that contains this process id and host name."""
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")


_TEMPORARY = re.compile(r"\..+?\.([0-9]+)(?:@(.*?))?(?:\.wide)?\.tmp")  # .wide: data/packed.py


def is_temporary(name: str) -> bool:
    """Whether `name` was made by `temporary`."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Deletes temporary files left behind by processes that have ended.

    Files from other machines, whose processes we cannot check, are deleted after a day.
    """
    for leftover in folder.glob(pattern):
        with suppress(OSError):  # another process has deleted it
            if is_abandoned(leftover):
                leftover.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether a file or folder with a temporary name was left behind by its process."""
    made_by = _TEMPORARY.fullmatch(path.name)
    if made_by is None:
        return False
    process, machine = int(made_by[1]), made_by[2]
    if machine in (None, platform.node()) and POSIX:
        return process != os.getpid() and not is_running(process)
    return time.time() - path.stat().st_mtime > LEFTOVER_SECONDS


def is_running(process: int) -> bool:
    """Whether a process runs on this machine. True on Windows, where os.kill would end it."""
    if not POSIX:
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks the file `path` until the block or the process ends. Raises `Locked` if it is taken.

    Uses `flock`. On file systems without locks (NFS without lockd, Lustre) it creates an owner file
    with the process id and host name; an owner file whose process has ended is replaced.
    """
    with open(path, "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            with _owner_file(path.with_name(f"{path.name}.owner")):
                yield
            return
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                raise Locked("another process") from e
            if e.errno not in _NO_LOCKS:
                raise
            with _owner_file(path.with_name(f"{path.name}.owner")):
                yield
            return
        yield


@contextmanager
def _owner_file(path: Path) -> Iterator[None]:
    name = f"{os.getpid()}@{platform.node()}"
    for _ in range(2):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            break
        except FileExistsError:
            if not (owner := _living_owner(path)):
                path.unlink(missing_ok=True)
                continue
            raise Locked(owner) from None
    else:
        raise Locked("another process")
    try:
        os.write(handle, name.encode())
        os.close(handle)
        yield
    finally:
        path.unlink(missing_ok=True)


def _living_owner(path: Path) -> str:
    """Describes who holds the lock; "" if that process has ended."""
    text = path.read_text(errors="replace")
    process, _, machine = text.partition("@")
    if machine == platform.node() and process.isdigit():
        return f"process {process}" if is_running(int(process)) else ""
    if not machine:  # its creator was killed before it wrote its name, or is about to write it
        return "" if time.time() - path.stat().st_mtime > 60 else "another process"
    if machine == platform.node():
        return ""
    return f"process {process} on {machine}; if that process has ended, delete {path}"
