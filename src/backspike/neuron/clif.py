"""The complementary LIF neuron (CLIF)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import CLIF as Options
from .arguments import has
from .lif import LIF

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import LayerArguments
    from .constants import Value


@has(Options, without=("v_reset",))
class CLIF(LIF):
    """A layer of complementary LIF neurons (Huang et al. 2024, arXiv 2402.04663).

    A second potential m adapts the soft reset:

        u[t] = lam v[t-1] + gain x[t],   s[t] = 1 if u[t] >= theta else 0
        m[t] = m[t-1] sig(u[t] / tau) + s[t]
        v[t] = u[t] - s[t] (theta + sig(m[t]))

    m rises with every spike and decays faster the lower u is; through m, gradients reach far back
    in time. By default the input does not decay and the surrogate is a rectangle of width 1, as in
    the paper. Threshold, learned width and mask work as in `LIF`; reset_gradient scales the
    gradient through the s in front of the brackets. The state holds v and m, `[2, B, ...]`.
    memory: "exact", "recompute" or "checkpoint".

    Raises ValueError if v_reset is given, or for another `memory`.
    """

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[LayerArguments],
    ) -> None:
        if rest.get("v_reset") is not None:
            raise ValueError("CLIF always resets by theta + sig(m); leave v_reset out")
        super().__init__(tau, channels=channels, **rest)
        if self.options.memory not in ("exact", "recompute", "checkpoint"):
            raise ValueError(
                "CLIF: memory must be 'exact', 'recompute' or 'checkpoint', "
                f"got {self.options.memory!r}"
            )
