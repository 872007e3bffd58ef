"""Whether every backend of this machine gives the same spikes, masks and gradients as the reference."""

from ..errors import CertifyError
from .check import AXES, TOLERANCE, Certificate, Finding, Row, run

__all__ = ["AXES", "TOLERANCE", "Certificate", "CertifyError", "Finding", "Row", "run"]
