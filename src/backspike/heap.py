"""Memory that was freed stays with the process, where the next tensor finds it: on a CPU fresh pages cost more than arithmetic.

glibc returns every block above 32 MB to the kernel as soon as it is freed, and the kernel has to clear each page again when the
next tensor is made; training makes and frees the same sizes in every step. The command line keeps the heap unless
BACKSPIKE_HEAP=0 is set; in a program of your own it is `bs.keep_heap()`, once, before the first large tensor. The price: memory
that was used once counts as the process's until it ends, or until `bs.release_heap()`; where tensors of many sizes come and go
the heap may hold gaps that fit none of them.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "BACKSPIKE_HEAP"  # "0": the heap is left as it is; set by the command line for the processes it starts
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_heap() -> bool:
    """Lets this process keep what it frees, from now on; whether that worked. Only glibc can (Linux), elsewhere it is False."""
    libc = _glibc()
    if libc is None:
        return False
    # glibc before 2.35 takes no threshold above 32 MB, but it can do without separate mappings
    kept = libc.mallopt(_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(_MMAP_MAX, 0)
    return bool(kept and libc.mallopt(_TRIM_THRESHOLD, -1))


def release_heap() -> bool:
    """Gives memory that is free now back to the system; whether there was any. What is allocated later is kept as before."""
    libc = _glibc()
    return bool(libc and libc.malloc_trim(0))


def keep_heap_unless_told() -> None:
    """For the command line: keeps the heap, here and in the processes started from here, unless BACKSPIKE_HEAP=0."""
    os.environ.setdefault(VARIABLE, "1")
    keep_heap_if_told()


def keep_heap_if_told() -> None:
    """For processes that the command line starts."""
    if os.environ.get(VARIABLE, "0") != "0":
        keep_heap()


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows knows no library of the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
