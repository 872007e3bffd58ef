"""Compares recipes over several seeds.

`run` trains a `Study`, whose arms are `Arm`s, and writes its page. All public names are loaded when
first used.
"""

from .runner import run
from .spec import Arm, Study

__all__ = ["Arm", "Study", "run"]
