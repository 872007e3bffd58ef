"""The kernels in Triton, as the backend "triton": importing it defines the operators of lif.py and of norm.py."""

from . import norm as norm
from .lif import refuses, run, unpack

__all__ = ["refuses", "run", "unpack"]
