"""What this machine is: processor, GPU, threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
        if hasattr(os, "sysconf")
        else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": _gpu() if device == "cuda" else None,
    }


def _gpu() -> str:
    import torch

    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


# threads that wait by spinning make a busy machine many times slower; read when torch is imported
QUIET_THREADS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for a process per core


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor and its number of cores, as env.json names it."""
    return f"{_processor()}, {os.cpu_count()} cores"
