"""torch.compile of the layers: from which torch on."""

import pytest
import torch

version = tuple(int(part) for part in torch.__version__.split(".")[:2])
needs_compile = pytest.mark.skipif(
    version < (2, 6),
    reason="torch.compile is tested with torch 2.13; up to 2.9 it cannot trace the layers",
)
