"""Unpacks a downloaded archive into a hidden folder, and moves whole files and folders from it.

An archive is untrusted: it must not write outside its folder, make links, or fill the disk. Tar
files are read with Python's filter "data", and both kinds within bounds of size and number.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from ..system import disk
from .source import File

# The archives of the known sets unpack to at most 5 times their size; a bomb to 1,000 times.
LARGEST_RATIO = 50
SPARE = 1 << 20  # bytes that any archive may unpack to
MOST_MEMBERS = 2_000_000
DEEPEST = 4  # folders above the files of the set
# errors that are not the fault of an archive
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}


def unpack(archive: Path, name: str, files: Sequence[File], folder: Path) -> None:
    """Unpacks the archive and moves what is beside `files` in it into `folder`.

    name: of the archive, which tells its kind. Folders that are already in `folder` stay.
    Raises DataError for a hostile or damaged archive and for one without the files; then nothing
    of it is left.
    """
    limit = LARGEST_RATIO * archive.stat().st_size + SPARE
    scratch = disk.temporary(archive)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        if name.endswith(".zip"):
            _unzip(archive, name, scratch, limit)
        else:
            _untar(archive, name, scratch, limit)
        base = _folder_of(files, scratch)
        if base is None:
            raise DataError(f"{name}: has no {files[0].name}; it is not the official archive")
        if hasattr(os, "sync"):
            os.sync()  # all files are on the disk before any gets its final name
        _move(base, folder)
    except DataError:
        raise
    except Exception as e:  # a damaged or hostile archive can raise almost anything
        if isinstance(e, OSError) and e.errno in _OF_THE_DISK:
            raise
        reason = (str(e).splitlines() or [""])[0] or type(e).__name__
        raise DataError(f"{name}: damaged archive ({reason})") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unzip(archive: Path, name: str, target: Path, limit: int) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        _check(name, len(members), sum(m.file_size for m in members), limit)
        for member in members:
            path = _inside(name, member.filename, target)
            if member.is_dir():
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            # reads at most member.file_size bytes
            with packed.open(member) as source, open(path, "xb") as out:
                shutil.copyfileobj(source, out)


def _untar(archive: Path, name: str, target: Path, limit: int) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise DataError(
            f"{name}: this Python cannot unpack it safely; use 3.10.12, 3.11.4 or newer"
        )
    with gzip.open(archive) as unpacked:
        bounded: Any = _Bounded(unpacked, name, limit)
        with tarfile.open(fileobj=bounded, mode="r|") as packed:
            for number, member in enumerate(packed, 1):
                _check(name, number, member.size, limit)
                _inside(name, member.name, target)
                if not (member.isreg() or member.isdir()):
                    raise DataError(f"{name}: {member.name!r} is no file or folder; refused")
                packed.extract(member, target, filter="data")


class _Bounded:
    """A stream that ends with a DataError after `limit` bytes, before it allocates them."""

    def __init__(self, stream: Any, name: str, limit: int) -> None:
        self.stream = stream
        self.name = name
        self.limit = limit
        self.left = limit

    def read(self, n: int) -> bytes:
        data = self.stream.read(min(n, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self.name, self.limit)
        return data


def _check(name: str, members: int, size: int, limit: int) -> None:
    if members > MOST_MEMBERS or size > limit:
        raise _too_large(name, limit)


def _too_large(name: str, limit: int) -> DataError:
    return DataError(
        f"{name}: unpacks to more than {limit:,} bytes or {MOST_MEMBERS:,} files; refused"
    )


def _inside(name: str, member: str, target: Path) -> Path:
    """Where a member goes. Raises DataError for a path that could leave the folder."""
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member or "\0" in member:
        raise DataError(f"{name}: {member!r} would leave the folder; refused")
    return target.joinpath(*path.parts)


def _folder_of(files: Sequence[File], top: Path) -> Path | None:
    """The uppermost folder that has all the files."""
    level: list[Path] = [top]
    for _ in range(DEEPEST):
        for folder in level:
            if all(file.is_in(folder) for file in files):
                return folder
        level = [child for folder in level for child in _folders(folder)]
    return None


def _folders(folder: Path) -> Iterator[Path]:
    return (child for child in sorted(folder.iterdir()) if child.is_dir())


def _move(base: Path, folder: Path) -> None:
    """Moves the whole folder if there is none yet, else each file, and each folder not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.exists():
        disk.replace(base, folder)
    else:
        for child in sorted(base.iterdir()):
            target = folder / child.name
            if not target.exists() or (child.is_file() and target.is_file()):
                disk.replace(child, target)
    disk.sync(folder.parent)
