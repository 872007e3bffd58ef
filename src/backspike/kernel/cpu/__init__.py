"""The backend "cpu": kernels in C. Importing it defines the operators of lif, clif and norm."""

from . import clif as clif
from . import norm as norm
from .lif import refuses, run

__all__ = ["refuses", "run"]
