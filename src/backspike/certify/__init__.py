"""Checks that all backends on this machine agree with the reference: spikes, masks, gradients."""

from ..errors import CertifyError
from .check import AXES, TOLERANCE, Certificate, Finding, Row, run

__all__ = ["AXES", "TOLERANCE", "Certificate", "CertifyError", "Finding", "Row", "run"]
