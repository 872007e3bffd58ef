"""A fixture that reveals reads of uninitialised memory, for tests that run kernels."""

import pytest
import torch


def _garbage(tensor):
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)


@pytest.fixture(autouse=True)
def nan_filled_empty(monkeypatch):
    """Fill uninitialised memory with NaN, so that elements a backend does not write are visible."""
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
