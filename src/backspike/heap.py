"""Memory that was freed stays with the process, where the next tensor finds it: on a CPU fresh pages cost more than arithmetic.

glibc returns every block above 32 MB to the kernel as soon as it is freed, and the kernel has to clear each page again when the
next tensor is made; training makes and frees the same sizes in every step. The command line keeps the heap unless
BACKSPIKE_HEAP=0 is set; in a program of your own it is `bs.keep_heap()`, once, before the first large tensor. The price: memory
that was used once counts as the process's until it ends, or until `bs.release_heap()`; where tensors of many sizes come and go
the heap may hold gaps that fit none of them.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_kept = False


def keep_heap() -> bool:
    """Lets this process keep what it frees, from now on; whether that worked. Only glibc can (Linux), elsewhere it is False."""
    global _kept
    libc = _glibc()
    if libc is None:
        return False
    # glibc before 2.35 takes no threshold above 32 MB, but it can do without separate mappings
    above = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_MAX, 0)
    _kept = bool(above and libc.mallopt(_TRIM_THRESHOLD, -1))
    return _kept


def kept() -> bool:
    """Whether `keep_heap` worked in this process; a process that it starts has to be told."""
    return _kept


def release_heap() -> bool:
    """Gives memory that is free now back to the system; whether there was any. What is allocated later is kept as before."""
    libc = _glibc()
    return bool(libc and libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows knows no library of the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
