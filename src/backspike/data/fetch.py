"""Downloads the files of a data set: only on request, resumed by ranges, checked by MD5.

A file is downloaded under a hidden name (`.SET-NAME.part`), which the next attempt continues. It
gets its own name only when it is complete and its MD5 is the official one; an archive is unpacked
into a hidden folder, from which whole folders and files are moved. What the servers send is
untrusted: it is never longer than announced, and redirects lead to the web only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from ..system import disk
from ..version import __version__
from .progress import progress
from .source import Archive, File, Source, roots
from .unpack import unpack

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3  # at one address, after stalls and truncations
BLOCK = 1 << 16
# of the addresses in `sets/`, which could not be reached from where this version was made
UNTRIED = "address not tried when this version was made"

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Item:
    """A file to download: one of the data set, or an archive with such files."""

    file: File | Archive
    contains: tuple[File, ...]  # the files of the set that it has


def missing_items(source: Source, folder: Path) -> list[Item]:
    """What has to be downloaded so that all files of the set's first layout are in `folder`."""
    items: dict[str, Item] = {}
    for file in source.layouts[0].files if source.layouts else ():
        if file.state(folder).startswith("present"):
            continue
        origin = file.archive or file
        known = items.get(origin.name, Item(origin, ()))
        items[origin.name] = Item(origin, (*known.contains, file))
    return list(items.values())


def target_folder(source: Source, root: str | os.PathLike[str] | None = None) -> Path:
    """The folder into which the files of a set go."""
    return roots(root)[0] / source.layouts[0].folders[0]


def get(
    source: Source, root: str | os.PathLike[str] | None = None, tell: Tell = lambda event: None
) -> list[Path]:
    """Downloads the missing files of a data set; returns where they are now.

    tell: called with an event `offer` for each file before it is downloaded, and with `got` after.
    Raises DataError, with one line, if the set offers no addresses, if no address of a file works,
    or if the folder cannot be written. What is complete by then stays, and the next call continues.
    """
    if all(state.startswith("present") for _, state in source.check(root)):
        return []
    folder = target_folder(source, root)
    items = missing_items(source, folder)
    if by_hand := [item.file.name for item in items if not item.file.urls]:
        raise DataError(
            f"{source.name}: no address is known from which a program may download "
            f"{by_hand[0]}; get it by hand: {source.missing(root)}"
        )
    top = roots(root)[0]
    try:
        top.mkdir(parents=True, exist_ok=True)
        with disk.lock(top / ".get.lock"):
            return [_get_item(source, item, top, folder, tell) for item in items]
    except disk.Locked as e:
        raise DataError(f"another download into {top} is running ({e}); wait for it") from e
    except OSError as e:
        raise DataError(f"cannot write {e.filename or top}: {e.strerror or e}") from e


def _get_item(source: Source, item: Item, top: Path, folder: Path, tell: Tell) -> Path:
    part = top / f".{source.name}-{item.file.name}.part"
    _download(source, item.file, part, tell)
    if isinstance(item.file, Archive):
        path = folder
        unpack(part, item.file.name, item.contains, folder)
        for file in item.contains:
            if not (state := file.state(folder)).startswith("present"):
                raise DataError(f"{folder / file.name}: {state}; move it away and try again")
        part.unlink()
    else:
        path = folder / item.file.name
        folder.mkdir(parents=True, exist_ok=True)
        disk.replace(part, path)
        disk.sync(folder)
    tell({"event": "got", "name": source.name, "file": item.file.name, "path": str(path)})
    return path


def _download(source: Source, file: File | Archive, part: Path, tell: Tell) -> None:
    """Completes `part` from the first address that works."""
    if file.md5 is not None and part.exists() and _md5_of(part) == file.md5:
        return  # an earlier attempt ended before the file got its name
    problems = []
    for url in file.urls:
        if file.md5 is None:  # another server may have another file
            part.unlink(missing_ok=True)
        try:
            _from_address(source, file, url, part, tell)
            return
        except _Failed as e:
            problems.append(f"{url}: {e}")
    raise DataError(
        f"{source.name}: {file.name} could not be downloaded ({'; '.join(problems)}); "
        f"try again later to continue, or get it by hand from {source.home}"
    )


class _Failed(Exception):
    """An address does not work. again: another attempt may continue."""

    def __init__(self, why: str, again: bool = False) -> None:
        super().__init__(why)
        self.again = again


def _from_address(source: Source, file: File | Archive, url: str, part: Path, tell: Tell) -> None:
    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            _continue(source, file, url, part, tell)
            break
        except _Failed as e:
            if not e.again or attempt == ATTEMPTS - 1 or _size(part) == before:
                raise
    md5 = _md5_of(part)
    if file.md5 not in (None, md5):
        part.unlink()
        raise _Failed(f"the file has MD5 {md5}, the official one {file.md5}")


def _continue(source: Source, file: File | Archive, url: str, part: Path, tell: Tell) -> None:
    """Downloads what `part` lacks."""
    have = _size(part)
    with _opened(url, have) as response:
        if response.status == 200:
            have = 0
        total = _total(response, have)
        if file.size is not None and total not in (None, file.size):
            raise _Failed(f"offers {total:,} bytes, the official file has {file.size:,}")
        total = file.size if total is None else total
        tell(
            {
                "event": "offer",
                "name": source.name,
                "file": file.name,
                "url": url,
                "bytes": total,
                "present": have,
                "note": UNTRIED,
            }
        )
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise DataError(
                f"{file.name} needs {total - have:,} bytes and {part.parent} has {free:,} free; "
                "free some space or choose another folder (--root)"
            )
        limit = free if total is None else total
        with open(part, "r+b" if have else "wb") as out:
            out.seek(have)
            _copy(response, out, limit, have, f"downloading {file.name}")
            out.flush()
            os.fsync(out.fileno())
    if total is not None and _size(part) != total:
        raise _Failed(f"ended after {_size(part):,} of {total:,} bytes", again=True)


def _copy(response: Any, out: IO[bytes], limit: int, have: int, what: str) -> None:
    with progress(what, max(limit, 1)) as advance:
        if have:
            advance(have)
        while True:
            try:
                block = response.read1(BLOCK)
            except (OSError, http.client.HTTPException) as e:
                raise _Failed(_reason(e), again=True) from e
            if not block:
                return
            have += len(block)
            if have > limit:
                raise _Failed(f"sends more than {limit:,} bytes")
            out.write(block)
            advance(len(block))


@contextmanager
def _opened(url: str, have: int) -> Iterator[Any]:
    """The response to a request of the bytes from `have` on. Raises _Failed."""
    headers = {"User-Agent": f"backspike/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = _OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416 and have:  # nothing is left, or the file is another one
            with _opened(url, 0) as response:
                yield response
            return
        why = (str(e.reason).splitlines() or [""])[0].rstrip(":")
        raise _Failed(f"HTTP {e.code} {why}", again=e.code >= 500) from e
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise _Failed(_reason(e)) from e
    with response:
        yield response


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to web addresses only, and never from https to http."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, new: str
    ) -> Any:
        before, after = (urllib.parse.urlsplit(url).scheme for url in (req.full_url, new))
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            raise urllib.error.HTTPError(new, code, f"redirects to {new}, refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, new)


_OPENER = urllib.request.build_opener(_WebOnly)


def _total(response: Any, have: int) -> int | None:
    """The size of the whole file as the server says it; None if it does not."""
    length = response.headers.get("Content-Length", "")
    if response.status == 206:
        start, _, total = response.headers.get("Content-Range", "").partition("/")
        if not start.startswith(f"bytes {have}-"):
            raise _Failed(f"answers with another range than asked for ({start[:40]!r})")
        return int(total) if total.isdigit() else None
    if response.status != 200:
        raise _Failed(f"HTTP {response.status}")
    return int(length) if length.isdigit() else None


def _reason(e: BaseException) -> str:
    """An error of the network in a few words."""
    inner = e.reason if isinstance(e, urllib.error.URLError) else e
    if isinstance(inner, TimeoutError):
        return f"no byte for {TIMEOUT:g} s"
    return (str(inner).splitlines() or [""])[0] or type(inner).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5_of(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.md5(usedforsecurity=False)
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
