"""What becomes of freed memory: kept by the process, which is fast, or given back at once, which is lean.

glibc returns every block above 32 MB to the kernel as soon as it is freed, and the kernel has to clear each page again when the
next tensor is made; training makes and frees the same sizes in every step, and on a CPU fresh pages cost more than arithmetic.
The command line keeps the heap; in a program of your own it is `bs.keep_heap()`, once, before the first large tensor. The
price: memory that was used once counts as the process's until it ends, or until `bs.release_heap()`; where tensors of many
sizes come and go the heap may hold gaps that fit none of them. `bs.lean_heap()` is the opposite: every tensor has pages of its
own, and the process never holds more than its tensors need. BACKSPIKE_HEAP=lean says so to the command line, BACKSPIKE_HEAP=0
leaves glibc as it is.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_OWN_PAGES = 1 << 16  # bytes: blocks from here on have pages of their own in a lean heap
_MAPPINGS = 1 << 16
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
    return bool(libc and libc.malloc_trim(0))


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows knows no library of the process itself
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
