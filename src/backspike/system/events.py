"""Events, the dicts that long-running functions pass to a listener, and `printable` text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[dict[str, Any]], None]


def printable(text: str) -> str:
    """Escapes line breaks and terminal control sequences, which paths and files may contain."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
