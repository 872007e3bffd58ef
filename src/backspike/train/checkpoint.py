"""Checkpoints: state to bytes and back, with everything checked on the way in."""

from __future__ import annotations

import io
import random
import zipfile
from typing import Any

import numpy as np
import torch

from ..errors import RunError
from ..run import Run
from .failures import first_line

CHECKPOINTS = ("last.ckpt", "previous.ckpt")
CHECKPOINT_VERSION = 3


def to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read(run: Run, name: str) -> dict[str, Any]:
    """Reads a checkpoint: tensors and plain values only, its checksums verified, nothing larger than the file."""
    packed = run.read(name)
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > len(packed):
                raise zipfile.BadZipFile(
                    f"{size} bytes in a file of {len(packed)}"
                )  # torch.save packs without compressing
            if (torn := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{torn} fails its checksum")
        state = torch.load(io.BytesIO(packed), "cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
    except Exception as e:  # whatever a damaged file makes the readers raise
        raise RunError(
            f"{run.path / name} is damaged ({first_line(e)}); start the run anew with --force"
        ) from e
    return state


FUSED: dict[type, set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}


def checked_numbers(values: Any, *kinds: type) -> list[Any]:
    """Numbers of a checkpoint, whole ones not negative; ValueError for anything else."""
    for value, kind in zip(values, kinds, strict=True):
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{value!r} is no {kind.__name__}")
        if isinstance(value, int) and not 0 <= value < 1 << 62:
            raise ValueError(f"{value} is out of range")
    return list(values)


def rng_state(device: torch.device) -> dict[str, Any]:
    version, state, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (what a user's data set may draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(state), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, *rest = state["numpy"]
    if (
        keys.shape != (624,) or not 0 <= position <= 624
    ):  # NumPy takes any position, and reads there
        raise ValueError(f"a generator of {list(keys.shape)} words at {position}")
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *rest))  # noqa: NPY002
