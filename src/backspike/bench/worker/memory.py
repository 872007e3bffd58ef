"""The memory of this process, or of its GPU: how much more it takes at its peak, and whether freed memory stays with it."""

from __future__ import annotations

import gc
import importlib.util
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .task import Settings

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


def use_heap(settings: Settings) -> bool:
    """Has this process do with freed memory what the settings say, as `bs.keep_heap` and `bs.lean_heap` do for any library;
    False where that cannot be had, or where they say nothing."""
    ours = settings.library == "ours"
    heap: Any = import_module("backspike.system.heap") if ours else system("heap")
    heap.use(settings.heap)
    return bool(settings.heap) and heap.mode() == settings.heap


def system(name: str) -> Any:
    """The module backspike.system.NAME, loaded from its file: this Python may not have backspike."""
    file = Path(__file__).parents[2] / "system" / f"{name}.py"
    spec: Any = importlib.util.spec_from_file_location(name, file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module
