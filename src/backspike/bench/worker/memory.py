"""Peak memory of this process or its GPU, and its setting for freed memory."""

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
    """The peak increase of GPU memory in bytes, as counted by torch's allocator."""

    how = "torch.cuda.max_memory_allocated"

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def extra(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before


class Peak:
    """The peak increase of the process's memory in bytes since this object was made."""

    def __init__(self) -> None:
        gc.collect()
        try:
            _CLEAR.write_text("5")  # resets the peak
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
    """Sets what happens to freed memory, as `bs.keep_heap` and `bs.lean_heap` do.

    Returns whether a setting was asked for and took effect.
    """
    ours = settings.library == "ours"
    heap: Any = import_module("backspike.system.heap") if ours else system("heap")
    heap.use(settings.heap)
    return bool(settings.heap) and heap.mode() == settings.heap


def system(name: str) -> Any:
    """The module backspike.system.NAME, loaded by path, as backspike may not be installed."""
    file = Path(__file__).parents[2] / "system" / f"{name}.py"
    spec: Any = importlib.util.spec_from_file_location(name, file)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module
