"""What all tests share: one thread (pytest -n uses more cores), one table of tolerances, visible uninitialised memory."""

import pytest
import torch

from backspike.certify.check import TOLERANCE

torch.set_num_threads(1)


@pytest.fixture
def tolerance():
    """Relative to the largest expected value, or to the sum of absolute terms for a scalar sum."""
    return TOLERANCE


def _garbage(tensor):
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture(autouse=True)
def nan_filled_empty(request, monkeypatch):
    """In kernel tests, memory that a backend takes and does not write comes out as NaN instead of, perhaps, zeros."""
    if not any(
        part in request.module.__name__ for part in ("kernel", "cpu", "norm", "pack", "pool", "product", "conv", "triton")
    ):
        return
    takers = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty")]
    for owner, name in takers:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _original=original, **k: _garbage(_original(*a, **k)))
