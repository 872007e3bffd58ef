"""Do time constants that differ between neurons help? Recurrent networks on spoken digits.

    backspike study benchmarks/heterogeneity.py:arms --seeds 6

Perez-Nieves et al. 2021 (doi:10.1038/s41467-021-26022-3) report that they do, most where time
matters: time constants drawn from a gamma distribution, learned per neuron, or both, against one
that is the same for all. The mean is the same in all arms.
"""

from backspike import Gamma, recipes
from backspike.study import Arm, Study


def arms() -> Study:
    """Four ways to give the neurons of two recurrent layers their time constants."""
    drawn = {"neuron.tau": Gamma(mean=9.0, shape=3.0), "neuron.per": "neuron"}
    learned = {"neuron.learn": ("tau",), "neuron.per": "neuron"}
    return Study(
        "heterogeneity",
        "One time constant for all neurons against one for each: drawn, learned or both.",
        recipes.spoken_digits(),
        (
            Arm("equal"),
            Arm("drawn", drawn),
            Arm("learned", learned),
            Arm("drawn and learned", {**drawn, **learned}),
        ),
        "equal",
        ("dots", "curves", "firing"),
        seeds=6,
    )
