"""The memory of this process, or of its GPU: how much more it takes at its peak, and whether freed memory stays with it."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_THRESHOLDS = {"kept": (2**30, 2**31 - 1), "lean": (2**16, 2**16)}  # for mappings of their own, for giving back


class DevicePeak:
    """The same of a GPU, as torch's allocator counts it."""

    how = "torch.cuda.max_memory_allocated"

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def extra(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before


class Peak:
    """Bytes that the process has taken at most since this was made, beyond what it had then."""

    def __init__(self) -> None:
        gc.collect()
        try:
            _CLEAR.write_text("5")  # the peak so far is forgotten
            self.how = "VmHWM"
        except OSError:
            self.how = "ru_maxrss"
        self.before = _kilobytes("VmRSS") if _STATUS.exists() else self._highest()

    def extra(self) -> int:
        return max(self._highest() - self.before, 0) * 1024

    def _highest(self) -> int:
        if self.how == "VmHWM":
            return _kilobytes("VmHWM")
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest // 1024 if sys.platform == "darwin" else highest


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


def use_heap(mode: str) -> bool:
    """Has glibc keep what is freed ("kept") or give it back at once ("lean"); False where that cannot be had, or for ""."""
    if not mode:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mapped, trimmed = _THRESHOLDS[mode]
    return bool(mallopt(_M_MMAP_THRESHOLD, mapped)) and bool(mallopt(_M_TRIM_THRESHOLD, trimmed))
