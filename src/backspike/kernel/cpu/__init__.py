"""The kernels in C, as the backend "cpu": importing it defines the operators of lif.py and of norm.py."""

from . import norm as norm
from .lif import refuses, run

__all__ = ["refuses", "run"]
