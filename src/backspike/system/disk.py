"""What file systems do differently, in one place: flushing, renaming, locking, temporary names.

Local disks, network file systems of clusters (without locks, or without fsync of a folder) and
Windows (no fcntl, folders cannot be opened, an open file cannot be replaced) all pass through here.
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

# a folder that cannot be flushed, or a file system without such a thing: the data are as safe as it gets
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_RENAME_ATTEMPTS = 10
LEFTOVER_SECONDS = 24 * 3600
POSIX = os.name == "posix"


class Locked(Exception):
    """The lock is held; the message says by whom, as far as it is known."""


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk. Folders only where the system can."""
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
    """Renames source onto target, atomically.

    On Windows a file that another program (a virus scanner, a viewer) has open for a moment cannot
    be replaced, so a refusal is tried again for about a second.
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
    """A hidden name beside `path` that tells which process on which machine made it."""
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")


_TEMPORARY = re.compile(r"\..+\.([0-9]+)(?:@(.*))?\.tmp")


def is_temporary(name: str) -> bool:
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Removes temporary files that no living process will finish.

    Those of this machine at once; those of other machines, whose processes cannot be seen, after a day.
    """
    for leftover in folder.glob(pattern):
        made_by = _TEMPORARY.fullmatch(leftover.name)
        with suppress(OSError):  # another process swept it
            if made_by and _abandoned(leftover, int(made_by[1]), made_by[2]):
                leftover.unlink()


def _abandoned(path: Path, process: int, machine: str | None) -> bool:
    if machine in (None, platform.node()) and POSIX:
        return process != os.getpid() and not lives(process)
    return time.time() - path.stat().st_mtime > LEFTOVER_SECONDS


def lives(process: int) -> bool:
    """Whether a process of this machine runs (POSIX; elsewhere True, as asking would end it)."""
    if not POSIX:
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, which goes with the process however it ends. Raises `Locked`.

    By `flock`; where the file system has no locks (NFS without lockd, Lustre), by a second file that
    names machine and process, which must not exist and whose dead owner is recognised.
    """
    with open(path, "a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            with _owned(path.with_name(f"{path.name}.owner")):
                yield
            return
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                raise Locked("another process") from e
            if e.errno not in _NO_LOCKS:
                raise
            with _owned(path.with_name(f"{path.name}.owner")):
                yield
            return
        yield


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    me = f"{os.getpid()}@{platform.node()}"
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
        os.write(handle, me.encode())
        os.close(handle)
        yield
    finally:
        path.unlink(missing_ok=True)


def _living_owner(path: Path) -> str:
    """Who holds the lock, in words; "" where its process is gone."""
    text = path.read_text(errors="replace")
    process, _, machine = text.partition("@")
    if machine == platform.node() and process.isdigit():
        return f"process {process}" if lives(int(process)) else ""
    if not machine:  # its maker was killed before it wrote its name, or is about to write it
        return "" if time.time() - path.stat().st_mtime > 60 else "another process"
    return (
        f"process {process} on {machine}; if that is gone, delete {path}"
        if machine != platform.node()
        else ""
    )
