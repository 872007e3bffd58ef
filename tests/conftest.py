"""What all tests share: one thread (pytest -n uses more cores) and one table of tolerances."""

import signal

import pytest
import torch

from backspike.certify.axes import TOLERANCE

torch.set_num_threads(1)
# a shell that starts pytest in the background has Ctrl-C ignored, also by what pytest starts
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tolerance():
    """Relative to the largest expected value, or to the sum of absolute terms for a scalar sum."""
    return TOLERANCE
