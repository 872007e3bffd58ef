"""Spoken digits as spikes of an artificial cochlea: Bittar & Garner 2022, doi:10.3389/fnins.2022.865897, their RLIF.

From the authors' code [code]: two recurrent layers of 128, BatchNorm over time and batch, dropout 0.1, threshold 1, soft
reset, input divided by tau, rectangle of width 1, recurrent weights that begin orthogonal, learned taus between 5.5 and 25.5;
T = 100 over 1.4 s, batch 128, Adam of 0.01. Differences, [ours]: one tau for a layer, from 9, not one for a neuron; the
membrane begins at rest where the code draws it; a neuron may come back to itself; the outputs are linear and their mean is
the logits, where the code adds up softmaxes of leaky integrators; cosine over 50 epochs, where the code lowers the rate on a
plateau of the test set, on which it also validates. The data are those of Cramer et al. 2020, doi:10.1109/TNNLS.2020.3044364.
"""

from __future__ import annotations

from ..models import MLP
from ..surrogate import Rectangle
from .recipe import Recipe
from .values import PLIF, AdamW

NEURON = PLIF(tau=9.0, v_threshold=1.0, v_reset=None, surrogate=Rectangle(width=1.0))


def shd() -> Recipe:
    """SHD, spoken digits, two recurrent layers of 128: a GPU and an hour."""
    return Recipe(
        name="shd",
        data="shd",
        T=100,
        has_time=True,
        model=MLP(hidden=(128, 128), recurrent=True, dropout=0.1),
        neuron=NEURON,
        optimizer=AdamW(lr=1e-2),
        epochs=50,
        batch_size=128,
    )
