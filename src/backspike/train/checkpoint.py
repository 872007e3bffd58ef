"""Reads and writes checkpoints. They are untrusted input, so everything is checked."""

from __future__ import annotations

import io
import math
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RecipeError, RunError, option
from ..methods.muon import Muon
from ..recipes.recipe import Recipe
from ..run import Run
from .failures import first_line, logger

CHECKPOINTS = ("last.ckpt", "previous.ckpt")
CHECKPOINT_VERSION = 3


@dataclass
class Progress:
    """The progress of a run; `epoch` and `batch` are the next to train.

    Both count from 0 here and in files; `str` counts from 1, as everything that people see.
    """

    epoch: int = 0
    batch: int = 0
    best: dict[str, Any] | None = None  # score, number and accuracy of the best epoch
    bad_epochs: int = 0  # since the best one
    elapsed: float = 0.0  # seconds of the finished epochs
    epoch_seconds: float = 0.0  # of the current epoch

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, batch {self.batch + 1}"

    def update_best(self, accuracy: float | None, loss: float | None) -> bool:
        """Whether this epoch is the best so far; without a validation set, the last one counts."""
        score = (self.epoch, 0.0) if accuracy is None or loss is None else (accuracy, -loss)
        better = self.best is None or score >= tuple(self.best["score"])
        if better:
            self.best = {"score": list(score), "epoch": self.epoch, "accuracy": accuracy}
        self.bad_epochs = 0 if better else self.bad_epochs + 1
        return better

    def begin_epoch(self) -> None:
        self.epoch += 1
        self.batch = 0
        self.epoch_seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "bad_epochs": self.bad_epochs,
            "elapsed": [self.elapsed, self.epoch_seconds],
        }

    def load_state_dict(self, state: dict[str, Any], epochs: int) -> None:
        """epochs: number of epochs in the recipe. Raises ValueError for implausible values."""
        self.epoch, self.batch, _ = checked_numbers(state["position"], int, int, int)
        self.elapsed, self.epoch_seconds = checked_numbers(state["elapsed"], float, float)
        (self.bad_epochs,) = checked_numbers([state["bad_epochs"]], int)
        self.best = state["best"]
        if self.best is not None:
            checked_numbers([*self.best["score"], self.best["epoch"]], float, float, int)
            if self.best["accuracy"] is not None:
                checked_numbers([self.best["accuracy"]], float)
        _, _, samples = checked_numbers(state["sums"], float, int, int)
        began = (self.best is not None, self.batch > 0)
        if began != (self.epoch > 0, samples > 0) or self.epoch > epochs:
            raise ValueError(f"{self}, best {self.best}")


def to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read(run: Run, name: str) -> dict[str, Any]:
    """Reads only tensors and plain values, with verified checksums, no larger than the file.

    Raises RunError for a damaged file.
    """
    packed = run.read(name)
    try:
        return from_bytes(packed)
    except Exception as e:  # a damaged file can raise almost anything
        raise RunError(
            f"{run.path / name} is damaged ({first_line(e)}); "
            f"train again with {option('force', True)}"
        ) from e


def from_bytes(packed: bytes) -> dict[str, Any]:
    """Undoes `to_bytes`. Raises nearly any error for what is damaged or no plain values."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        # torch.save does not compress
        if (size := sum(member.file_size for member in archive.infolist())) > len(packed):
            raise zipfile.BadZipFile(f"{size} bytes in a file of {len(packed)}")
        if (torn := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{torn} fails its checksum")
    state = torch.load(io.BytesIO(packed), "cpu", weights_only=True)
    if not isinstance(state, dict):
        raise ValueError(f"a {type(state).__name__}")
    return state


def read_last(run: Run) -> dict[str, Any]:
    """Reads last.ckpt; if it is damaged, previous.ckpt takes its place."""
    try:
        return read(run, "last.ckpt")
    except RunError as damaged:
        try:
            state = read(run, "previous.ckpt")
        except RunError:
            raise damaged from None
        logger.warning(
            "%s is damaged: continuing from the checkpoint before it, %s",
            run.path / "last.ckpt",
            Progress(*state["position"][:2]),
        )
        run.write("last.ckpt", run.read("previous.ckpt"))
        return state


def check_recipe(state: dict[str, Any], recipe: Recipe, path: Path) -> None:
    """Raises RunError unless a checkpoint has this version and this recipe."""
    if state.get("version") != CHECKPOINT_VERSION:
        raise RunError(f"{path} was written by another version of backspike; resume it with that")
    if not _same_recipe(state.get("recipe"), recipe.to_dict()):
        raise RunError(
            f"{path.parent}: last.ckpt belongs to another recipe than recipe.json; "
            "restore the matching file"
        )


def _same_recipe(stored: Any, wanted: dict[str, Any]) -> bool:
    """Fields that an older version did not have take their defaults."""
    if stored == wanted:
        return True
    try:
        return Recipe.from_dict(stored).to_dict() == wanted
    except (RecipeError, TypeError, AttributeError, KeyError):  # damaged, or a user's own values
        return False


def checked_numbers(values: Any, *kinds: type) -> list[Any]:
    """Numbers of a checkpoint; integers must not be negative. Raises ValueError otherwise."""
    for value, kind in zip(values, kinds, strict=True):
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{value!r} is not of type {kind.__name__}")
        if isinstance(value, int) and not 0 <= value < 1 << 62:
            raise ValueError(f"{value} is out of range")
    return list(values)


# ---- the optimizer -------------------------------------------------------------------------------

# the state of each optimizer; torch's fused ones write past the end of a tensor of the wrong size
_STATE: dict[type, set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    Muon: {"momentum_buffer"},
}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the moments and keeps the parameter groups of the recipe."""
    moments = state["state"]
    if (names := _STATE.get(type(optimizer))) is not None:
        moments = _checked_moments(optimizer, moments, names)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _checked_moments(
    optimizer: torch.optim.Optimizer, stored: dict[int, dict[str, Any]], names: set[str]
) -> dict[int, dict[str, Any]]:
    """A copy of the stored state in tensors with the shape, type and layout of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    out: dict[int, dict[str, Any]] = {}
    for i, values in stored.items():
        if values and set(values) != names:
            raise ValueError(
                f"the optimizer has the state {', '.join(sorted(names))}, "
                f"not {', '.join(map(str, values))}"
            )
        wanted = {
            name: torch.tensor(0.0) if name == "step" else parameters[i].detach() for name in values
        }
        if any(v.shape != wanted[name].shape for name, v in values.items()):
            raise ValueError(f"the optimizer's state of parameter {i} has another shape")
        out[i] = {name: torch.empty_like(wanted[name]).copy_(v) for name, v in values.items()}
    return out


def load_scaler(scaler: torch.amp.GradScaler, state: dict[str, Any]) -> None:
    """Loads the state of a gradient scaler. Raises ValueError unless it is one."""
    own = scaler.state_dict()
    if state.keys() != own.keys():
        raise ValueError(f"the state of the gradient scaler has {', '.join(map(str, state))}")
    checked_numbers([state[name] for name in own], *map(type, own.values()))
    if not 0 < state["scale"] < math.inf:
        raise ValueError(f"the scale of the loss is {state['scale']}")
    scaler.load_state_dict(state)


# ---- random generators ---------------------------------------------------------------------------


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators: torch, CUDA, Python, NumPy."""
    version, state, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (a user's data may draw from it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(state), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `rng_state` returned; raises ValueError for an impossible NumPy state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, *rest = state["numpy"]
    # NumPy accepts any position and would read out of bounds
    if keys.shape != (624,) or not 0 <= position <= 624:
        raise ValueError(f"a generator of {list(keys.shape)} words at {position}")
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, *rest))  # noqa: NPY002


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restores all random generators at the end."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
