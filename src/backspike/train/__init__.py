"""`fit` trains a recipe into a run folder, `resume` continues it, `evaluate` and `load` use it."""

from .evaluate import evaluate
from .fit import fit, resume
from .network import Network, load
from .trainer import Result

__all__ = ["Network", "Result", "evaluate", "fit", "load", "resume"]
