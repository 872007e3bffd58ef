"""Uninitialised memory made visible, for the folders whose tests run kernels."""

import pytest
import torch


def _garbage(tensor):
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture(autouse=True)
def nan_filled_empty(monkeypatch):
    """In kernel tests, memory that a backend takes and does not write comes out as NaN instead of, perhaps, zeros."""
    takers = [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]
    for owner, name in takers:
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _original=original, **k: _garbage(_original(*a, **k))
        )
