"""All surrogates of surrogate.py with their formulas in numpy."""

import numpy as np

from backspike import surrogate as s

# value -> (h in numpy float64, area, kinks), for each class of surrogate.py that wraps no other;
# parameters differ from the defaults
FAMILIES = {
    s.Triangle(alpha=1.5): (lambda z: np.maximum(0, 1.5 - 2.25 * np.abs(z)), 1, (-2 / 3, 0, 2 / 3)),
    s.ATan(alpha=3.0): (lambda z: 1.5 / (1 + (1.5 * np.pi * z) ** 2), 1, ()),
    s.Rectangle(width=0.8): (lambda z: np.where(np.abs(z) < 0.4, 1.25, 0.0), 1, (-0.4, 0.4)),
    s.Sigmoid(alpha=3.0): (
        lambda z: 3 * np.exp(-3 * np.abs(z)) / (1 + np.exp(-3 * np.abs(z))) ** 2,
        1,
        (),
    ),
    s.SuperSpike(alpha=2.5): (lambda z: (1 + 2.5 * np.abs(z)) ** -2.0, 2 / 2.5, (0,)),
    s.PiecewiseExponential(alpha=1.3): (lambda z: 0.65 * np.exp(-1.3 * np.abs(z)), 1, (0,)),
    s.Erf(alpha=1.6): (lambda z: 1.6 / np.sqrt(np.pi) * np.exp(-((1.6 * z) ** 2)), 1, ()),
    s.Dspike(temperature=4.0): (
        lambda z: np.where(np.abs(z) < 0.5, 4 / np.cosh(4 * z) ** 2 / (2 * np.tanh(2.0)), 0.0),
        1,
        (-0.5, 0.5),
    ),
}


def with_scale(surrogate, scale):
    return type(surrogate)(next(iter(vars(surrogate).values())), scale=scale)
