"""What a case of the certificate can vary: the axes with their values, sizes and tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import kernel
from ..surrogate import (
    FAMILIES,
    ATan,
    Dspike,
    Erf,
    Masked,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Surrogate,
    Triangle,
)

# largest error of a gradient, ||g - g64|| / ||g64||; for learned constants and the state, that of
# the state's dtype
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# 756 elements per timestep: more than a block of the C code, and not a multiple of 8
SHAPE = (T, B, C, H, W) = (5, 3, 4, 7, 9)
SEED = 2**41 + 17

# All parameters differ from the defaults; edges of surrogates are on the grid. The plain value of
# each axis comes first. A surrogate that is not in this list has its default parameters.
_SURROGATES: tuple[Surrogate, ...] = (
    Rectangle(0.75, 1.25),
    Triangle(1.5),
    ATan(3.0),
    Sigmoid(3.0),
    SuperSpike(2.5),
    PiecewiseExponential(1.25),
    Erf(0.75),
    Dspike(4.0),
)
SURROGATES = {type(s).__name__: s for s in _SURROGATES}
SURROGATES |= {s.__name__: s() for s in FAMILIES if s.__name__ not in SURROGATES}
MASKS: dict[str, Callable[[Any], Surrogate]] = {
    "none": lambda base: base,
    "zero": lambda base: Masked(base, p=0.5),
    "replace": lambda base: Masked(base, p=0.5, replace=Rectangle(0.5)),
    "rescale": lambda base: Masked(base, p=0.375, rescale=True),
}
CONSTANTS = {
    "tau": [2.0, 4.0, 2.0, 4.0],
    "v_threshold": [0.75, 0.5, 1.0, 0.75],
    "width": [0.5, 2.0, 1.0, 0.5],
}
LEARNED: dict[str, tuple[str, ...]] = {
    "none": (),
    "width": ("width",),
    "threshold": ("v_threshold",),
    "tau": ("tau",),
    "per-channel": tuple(CONSTANTS),
}
CALLS = (
    *("plain", "state", "membrane", "channels-last", "one-sample", "one-row", "repeats"),
    "non-finite",
)
AXES: dict[str, dict[str, Any]] = {
    "surrogate": SURROGATES,
    "v_reset": {"None": None, "0": 0.0, "-0.25": -0.25},
    "decay_input": {"True": True, "False": False},
    "reset_gradient": {"1": 1.0, "0": 0.0, "0.375": 0.375},
    "temporal_gradient": {"True": True, "False": False},
    "dtype": {
        str(d).removeprefix("torch."): d
        for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    "mask": MASKS,
    "learned": LEARNED,
    # for a single neuron "checkpoint" is the same as "recompute"
    "memory": {m: m for m in kernel.MEMORIES if m != "checkpoint"},
    # how it is called: from rest; from a state, with a gradient at the last state; with the
    # membrane recorded, and a gradient at it; channels last, also of one sample or one row; with
    # one timestep that stands for all; with currents of NaN and infinity
    "call": {name: name for name in CALLS},
}
