"""Spoken digits and words as the spikes of an artificial cochlea: the RLIF of Bittar & Garner 2022,
doi:10.3389/fnins.2022.865897.

From the authors' code [code]: two recurrent layers of 128 neurons, BatchNorm over time and batch,
dropout 0.1, threshold 1, soft reset, input divided by tau, rectangle of width 1, orthogonal initial
recurrent weights, learned taus between 5.5 and 25.5; T = 100 over 1.4 s, batch size 128, Adam with
learning rate 0.01.

As there, each neuron has a learned tau of its own; lam = 1 - 1/tau starts uniform between
exp(-1/5) and exp(-1/25) and stays between them.

Differences [ours]: the membrane starts at rest instead of at random; neurons may connect to
themselves; the outputs are linear and the logits are their mean, whereas the code sums the
softmaxes of leaky integrators; 50 epochs with a cosine schedule, whereas the code lowers the rate
on a plateau of the test set of SHD, which it also uses for validation; a sample of SSC takes 1 s.
The data are those of Cramer et al. 2020, doi:10.1109/TNNLS.2020.3044364.
"""

from __future__ import annotations

from dataclasses import replace

from ..models import MLP
from ..options.distribution import UniformDecay
from ..surrogate import Rectangle
from .recipe import Recipe
from .values import PLIF, AdamW

NEURON = PLIF(
    tau=UniformDecay(low=5.517, high=25.503),  # 1 / (1 - exp(-1/5)) and 1 / (1 - exp(-1/25))
    per="neuron",
    v_threshold=1.0,
    v_reset=None,
    decay_input=True,
    surrogate=Rectangle(width=1.0),
    reset_gradient=1.0,
    temporal_gradient=True,
)


def shd() -> Recipe:
    """SHD, spoken digits, two recurrent layers of 128 neurons: an hour on a GPU."""
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


def ssc() -> Recipe:
    """SSC, 35 spoken words, the network of `shd`: hours on a GPU."""
    return replace(
        shd(),
        name="ssc",
        data="ssc",
        model=MLP(num_classes=35, hidden=(128, 128), recurrent=True, dropout=0.1),
    )
