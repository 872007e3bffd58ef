"""Entries of the list of recipes: the function, the published and the measured accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .recipe import Recipe

# how reliable a fact about a paper is; the same grades as in docs/methods.md
GRADES = {
    "abs": "from the abstract",
    "code": "from the authors' public code",
    "note": "second-hand",
    "ours": "chosen here, as the source does not say",
}


@dataclass(frozen=True)
class Reported:
    """A published test accuracy in %, with its spread over seeds if known.

    grade: how reliable it is, a key of GRADES. Raises ValueError for any other.
    """

    accuracy: float
    spread: float | None
    source: str
    grade: str = "note"

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise ValueError(f"grade: one of {', '.join(GRADES)}, got {self.grade!r}")

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.2f}"
        return f"{self.accuracy:.2f}{spread} % ({self.source}, {GRADES[self.grade]})"


@dataclass(frozen=True)
class Shipped:
    """A recipe of this package. here: the results measured by this project; empty if not run."""

    make: Callable[[], Recipe]
    reported: Reported | None = None
    here: str = ""

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (self.make.__doc__ or "").splitlines()[0]
