"""A file for each library: its neuron, and how its users put layers over time around it (the protocol `networks.Library`)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from ..task import Settings

if TYPE_CHECKING:
    from ..networks import Library


def load(settings: Settings) -> Library:
    """The parts of the library that the settings name."""
    if settings.library == "spikingjelly" and settings.backend != "auto":
        os.environ["SJ_LIF_CUDA_IMPLEMENTATION"] = settings.backend  # read when it is imported
    return import_module(f".{settings.library}", __name__).Parts(settings)
