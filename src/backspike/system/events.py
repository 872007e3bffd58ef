"""Events: the dicts that long-running functions pass to a listener, and text that is safe to print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[dict[str, Any]], None]


def printable(text: str) -> str:
    """The text on one line: what a terminal would obey is written as Python writes it. Paths and files may hold such."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
