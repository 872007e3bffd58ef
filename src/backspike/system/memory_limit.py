"""A limit on the memory of this process, which turns an excess into a Python error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..errors import RunError, option


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Inside, allocations fail that would take this process beyond `size` bytes. 0: no limit.

    Linux limits private memory that may be written (RLIMIT_DATA), resident or not: the limit is
    what the process has of it now and what is missing to `size` from its resident memory. Elsewhere
    nothing is limited. Raises RunError if the process is larger already.
    """
    if not size:
        yield
        return
    try:
        import resource

        # OpenBLAS allocates its buffers at the first large product and ends a process that has no
        # room for them
        np.ones((256, 256)) @ np.ones((256, 256))
        with open("/proc/self/status") as f:
            kilobytes = dict(line.split(":", 1) for line in f)
        resident, data = (1024 * int(kilobytes[k].split()[0]) for k in ("VmRSS", "VmData"))
        before = soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    except (ImportError, OSError, KeyError):
        yield
        return
    if resident >= size:
        raise RunError(
            f"this process has {resident:,} bytes of memory already, and its limit is {size:,}; "
            f"run in a new process, or set {option('memory_limit', 0)}"
        )
    ours = data + size - resident
    for other in before:
        ours = ours if other == resource.RLIM_INFINITY else min(ours, other)
    resource.setrlimit(resource.RLIMIT_DATA, (ours, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
