"""One file per library: its neuron, and how its users combine layers over time.

Each has a class `Parts` with the protocol `networks.Library`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from ..task import Settings

if TYPE_CHECKING:
    from ..networks import Library


def load(settings: Settings) -> Library:
    """The layers of the library that the settings name."""
    if settings.library == "spikingjelly" and settings.backend != "auto":
        os.environ["SJ_LIF_CUDA_IMPLEMENTATION"] = settings.backend  # read on import
    return import_module(f".{settings.library}", __name__).Parts(settings)
