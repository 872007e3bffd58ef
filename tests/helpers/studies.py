"""Shared by the tests: parts of what was in test_study.py."""

from backspike import recipes
from backspike.models import ConvNet
from backspike.recipes.values import AdamW, Mean
from backspike.study.spec import Arm, Study
from backspike.surrogate import Masked, Triangle


def _small(epochs=1, **more):
    """Two arms that run in a second or two."""
    changes = {
        "epochs": epochs,
        "limit": 100,
        "batch_size": 25,
        "neuron.surrogate": Triangle(alpha=2.0),
        "readout": Mean(),
    }
    base = recipes.digits().replace(
        {**changes, "model": ConvNet("4-P-8-P", size=8), "optimizer": AdamW(lr=0.01)}
    )
    arms = (Arm("plain"), Arm("masked", {"neuron.surrogate": Masked(Triangle(alpha=2.0), p=0.5)}))
    return Study(
        **{
            "name": "small",
            "about": "a small one",
            "base": base,
            "arms": arms,
            "baseline": "plain",
            **more,
        }
    )
