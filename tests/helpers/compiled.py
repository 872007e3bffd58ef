"""torch.compile of the layers: from which torch on."""

import pytest
import torch

version = tuple(int(part) for part in torch.__version__.split(".")[:2])
needs_compile = pytest.mark.skipif(
    version < (2, 9),
    reason="torch.compile up to torch 2.8 cannot trace the layers",
)
