"""The complementary LIF neuron (CLIF)."""

from __future__ import annotations

from typing import Any

from ..options import CLIF as Options
from .arguments import has
from .lif import LIF


@has(Options, without=("v_reset",))
class CLIF(LIF):
    """A layer of complementary LIF neurons (Huang et al. 2024, arXiv 2402.04663): a second potential m adapts the soft reset.

        u[t] = lam v[t-1] + gain x[t],   s[t] = 1 if u[t] >= theta else 0
        m[t] = m[t-1] sig(u[t] / tau) + s[t]
        v[t] = u[t] - s[t] (theta + sig(m[t]))

    m rises with every spike and decays the faster the lower u is, and its path carries gradients far back in time. The input
    does not decay by default and the surrogate is a rectangle of width 1, as in the paper; theta and its learning, the width
    and the mask are those of `LIF`, reset_gradient is the share through the s that stands before the brackets, and the state
    is v and m, `[2, B, ...]`. memory: "exact", "recompute" or "checkpoint".
    """

    def __init__(
        self, tau: float = Options.tau, *, channels: int | None = None, **rest: Any
    ) -> None:
        if rest.get("v_reset") is not None:
            raise ValueError("CLIF has a reset of its own, by theta + sig(m); leave v_reset out")
        super().__init__(tau, channels=channels, **rest)
        if self.options.memory not in ("exact", "recompute", "checkpoint"):
            raise ValueError(
                "CLIF: memory is exact, recompute or checkpoint, since m depends on all of u; "
                f"got {self.options.memory!r}"
            )
