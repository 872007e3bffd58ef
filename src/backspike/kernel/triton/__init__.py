"""The backend "triton": kernels in Triton. Importing it defines the operators of lif and norm."""

from . import norm as norm
from .lif import refuses, run, unpack

__all__ = ["refuses", "run", "unpack"]
