"""What the list of recipes says of each: how it is made, the accuracy its paper reports, what was run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .recipe import Recipe

# how well a fact about a paper is known; the same grades as in docs/methods.md
GRADES = {
    "abs": "from the abstract",
    "code": "from the authors' public code",
    "note": "second-hand",
    "ours": "chosen here, as the source does not say",
}


@dataclass(frozen=True)
class Reported:
    """A test accuracy in %, with its spread over seeds where one is known. grade: of GRADES, how we know of it."""

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
    """A recipe that ships. here: what came out on the project's machine, empty where it was not run."""

    make: Callable[[], Recipe]
    reported: Reported | None = None
    here: str = ""

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (self.make.__doc__ or "").splitlines()[0]
