"""How glibc treats freed memory: keep it in the process (fast) or return it at once (lean).

By default, glibc returns every block above 32 MB to the kernel as soon as it is freed, and the
kernel clears the pages again for the next tensor. Training allocates and frees the same sizes in
every step, and on a CPU fresh pages cost more than arithmetic. The command line therefore keeps
the heap; your own program can call `bs.keep_heap()` once, before the first large tensor. The price
is that the process holds its peak memory until it ends or calls `bs.release_heap()`, and that
tensors of many different sizes may fragment the heap. A kept heap also uses huge pages (2 MB) if
the kernel has them, for up to a quarter of the machine's memory, which saves TLB misses.

`bs.lean_heap()` is the opposite: each tensor has its own pages, so the process never holds more
than its tensors need. For the command line, BACKSPIKE_HEAP=lean selects it, and BACKSPIKE_HEAP=0
leaves glibc unchanged.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # from malloc.h
_OWN_PAGES = 1 << 16  # bytes; in a lean heap, blocks of at least this size have their own pages
_MAPPINGS = 1 << 16
_MADV_HUGEPAGE = 14  # from mman.h
_HUGE_PAGE = 1 << 21  # bytes
_PIECE = (1 << 30) - (1 << 16)  # bytes; just below the size that glibc maps separately
_mode = ""


def keep_heap() -> bool:
    """From now on, keeps freed memory in this process. Returns whether it worked (glibc only)."""
    global _mode
    libc = _glibc()
    if libc is None:
        return False
    # glibc before 2.35 accepts no threshold above 32 MB, but can be told not to map blocks
    unmapped = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_MAX, 0)
    worked = bool(unmapped and libc.mallopt(_TRIM_THRESHOLD, -1))
    _mode = "kept" if worked else ""
    if worked:
        _reserve(libc)
    return worked


def lean_heap() -> bool:
    """From now on, returns freed memory to the system. Returns whether that worked (glibc only).

    Setting the threshold also stops glibc from raising it to the size of freed blocks.
    """
    global _mode
    libc = _glibc()
    options = {
        _MMAP_MAX: _MAPPINGS,
        _MMAP_THRESHOLD: _OWN_PAGES,
        _TRIM_THRESHOLD: _OWN_PAGES,
    }
    worked = libc is not None and all(libc.mallopt(*option) for option in options.items())
    _mode = "lean" if worked else ""
    return worked


def mode() -> str:
    """The mode: "kept", "lean" or "" (unchanged). Pass it to `use` in a child process."""
    return _mode


def use(mode: str) -> None:
    """Sets the mode that `mode` returned in another process."""
    if mode:
        {"kept": keep_heap, "lean": lean_heap}[mode]()


def release_heap() -> bool:
    """Returns free memory to the system once; the mode stays. Returns whether there was any."""
    libc = _glibc()
    released = bool(libc and libc.malloc_trim(0))
    if libc and _mode == "kept":
        _reserve(libc)
    return released


def _reserve(libc: ctypes.CDLL) -> None:
    """Grows the heap by address space (no memory) and asks for huge pages there; may fail."""
    import resource  # not on Windows

    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits) or _overcommit_forbidden():
        return  # address space counts as memory here
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    pieces = [p for p in (libc.malloc(_PIECE) for _ in range(max(1, total // 4 // _PIECE))) if p]
    if pieces:
        start = -(-min(pieces) // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, max(pieces) + _PIECE - start, _MADV_HUGEPAGE)
    for piece in pieces:
        libc.free(piece)


def _overcommit_forbidden() -> bool:
    """Whether the kernel promises no more memory than it has, so that address space counts."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no handle for the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
