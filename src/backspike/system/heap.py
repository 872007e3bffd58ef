"""What becomes of freed memory: kept by the process, which is fast, or given back at once, which is lean.

glibc returns every block above 32 MB to the kernel as soon as it is freed, and the kernel has to clear each page again when the
next tensor is made; training makes and frees the same sizes in every step, and on a CPU fresh pages cost more than arithmetic.
The command line keeps the heap; in a program of your own it is `bs.keep_heap()`, once, before the first large tensor. The
price: memory that was used once counts as the process's until it ends, or until `bs.release_heap()`; where tensors of many
sizes come and go the heap may hold gaps that fit none of them. A kept heap also lies on pages of 2 MB, up to a quarter of the
machine's memory, where the kernel has such pages: walking through tensors then misses fewer translations of addresses.

`bs.lean_heap()` is the opposite: every tensor has pages of its own, and the process never holds more than its tensors need.
BACKSPIKE_HEAP=lean says so to the command line, BACKSPIKE_HEAP=0 leaves glibc as it is.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_OWN_PAGES = 1 << 16  # bytes: blocks from here on have pages of their own in a lean heap
_MAPPINGS = 1 << 16
_HUGEPAGE, _LARGE = 14, 1 << 21  # MADV_HUGEPAGE of mman.h and the size of such a page
_PIECE = (1 << 30) - (
    1 << 16
)  # bytes: below the threshold from which on glibc maps a block by itself
_mode = ""


def keep_heap() -> bool:
    """Lets this process keep what it frees, from now on; whether that worked. Only glibc can (Linux), elsewhere it is False."""
    global _mode
    libc = _glibc()
    if libc is None:
        return False
    # glibc before 2.35 takes no threshold above 32 MB, but it can do without separate mappings
    above = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_MAX, 0)
    worked = bool(above and libc.mallopt(_TRIM_THRESHOLD, -1))
    _mode = "kept" if worked else ""
    if worked:
        _reserve(libc)
    return worked


def lean_heap() -> bool:
    """Lets this process give back whatever it frees, from now on; whether that worked. Only glibc can, elsewhere it is False.

    Naming the threshold also stops glibc from raising it to the size of what was freed, as it does by itself up to 32 MB.
    """
    global _mode
    libc = _glibc()
    asked = ((_MMAP_MAX, _MAPPINGS), (_MMAP_THRESHOLD, _OWN_PAGES), (_TRIM_THRESHOLD, _OWN_PAGES))
    worked = libc is not None and all(libc.mallopt(option, value) for option, value in asked)
    _mode = "lean" if worked else ""
    return worked


def mode() -> str:
    """ "kept", "lean" or "": what this process does; a process that it starts has to be told by `use`."""
    return _mode


def use(mode: str) -> None:
    """What `mode` returned in another process."""
    if mode:
        {"kept": keep_heap, "lean": lean_heap}[mode]()


def release_heap() -> bool:
    """Gives memory that is free now back to the system; whether there was any. What is allocated later is kept as before."""
    libc = _glibc()
    released = bool(libc and libc.malloc_trim(0))
    if libc and _mode == "kept":
        _reserve(libc)
    return released


def _reserve(libc: ctypes.CDLL) -> None:
    """Lets the heap grow by addresses, not by memory, whose pages are to be large; where that fails nothing is lost."""
    import resource  # not on Windows

    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits) or _counted():
        return  # addresses are as dear as memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pieces = [p for p in (libc.malloc(_PIECE) for _ in range(max(1, total // 4 // _PIECE))) if p]
    if pieces:
        start, end = -(-min(pieces) // _LARGE) * _LARGE, max(pieces) + _PIECE
        libc.madvise(start, end - start, _HUGEPAGE)
    for piece in pieces:
        libc.free(piece)


def _counted() -> bool:
    """Whether the kernel promises no more memory than it has, so that addresses alone take from it."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows knows no library of the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
