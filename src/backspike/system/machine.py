"""Describes this machine: processor, GPU, threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The properties of this machine and its software on which measurements depend."""
    import torch

    return {
        "cpu": _processor(),
        "cores": processors(),
        "threads": threads,
        "memory_gb": _memory_gb(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": _gpu() if device == "cuda" else None,
    }


def _memory_gb() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _gpu() -> str:
    import torch

    gpu = torch.cuda.get_device_properties(0)
    memory = f"{gpu.total_memory / 2**30:.0f} GiB"
    return f"{gpu.name}, {memory}, {gpu.multi_processor_count} multiprocessors"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


# OpenMP threads that spin while they wait slow down a busy machine many times over. These variables
# shorten the spinning; they are read when torch is imported.
QUIET_THREADS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for one process per core


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Processor model and number of cores, as in env.json."""
    return f"{_processor()}, {os.cpu_count()} cores"
