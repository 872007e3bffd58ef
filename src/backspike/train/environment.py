"""`env.json`: where and with what a run was trained."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..system import distributed
from ..system.machine import processor_name
from ..version import __version__
from .setup import Setup


def environment(setup: Setup) -> dict[str, Any]:
    on_gpu = setup.device.type == "cuda"
    return {
        "backspike": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "ranks": setup.ranks.size,
        "device": torch.cuda.get_device_name(setup.device) if on_gpu else "cpu",
        "command": _command(setup),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data_note": setup.sets.note,
        "data_credit": setup.sets.credit,
        "parameters": sum(p.numel() for p in setup.network.parameters()),
        **{f"{name}_because": why for name, why in setup.reasons.items()},
    }


def _command(setup: Setup) -> str:
    """What repeats the run: the command line, or the call of `fit` with the recipe written out."""
    if Path(sys.argv[0]).stem in ("backspike", "__main__"):
        return distributed.command(*sys.argv[1:])
    arguments = {"model": "model=...", "data": "train=..., test=..."}
    own = [arguments[name] for name in setup.own]
    return ", ".join([f"bs.fit({setup.recipe!r}", "out", *own]) + ")"
