"""What training writes to the log."""

from __future__ import annotations

WATCHED = 64  # training samples that `watch` measures
