"""Constants of a training step."""

from __future__ import annotations

READ_EVERY = (
    20  # steps between two looks at the loss, where looking makes the host wait for the device
)
