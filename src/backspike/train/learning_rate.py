"""Learning rates: by the recipe's own formula, or by a scheduler of torch on the same optimizer.

Both are stepped by the trainer, and their state is in the checkpoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from ..errors import RunError, option
from ..recipes.recipe import Recipe
from ..recipes.values import OneCycleLR
from .checkpoint import from_bytes, to_bytes
from .failures import first_line

# (optimizer) -> a scheduler, or (scheduler, "batch") for one that is stepped after every batch
OwnScheduler = Callable[[Optimizer], Any]
# torch's documentation: "should be called after a batch has been used for training"
_PER_BATCH = (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
_CHANGED = ("lr", "momentum", "betas")  # the options of a group that schedulers change


def learning_rate(recipe: Recipe, step: int, per_epoch: int) -> float:
    """The learning rate of step number `step`, with `per_epoch` steps in an epoch."""
    peak = recipe.optimizer.lr
    warmup, total = recipe.warmup_epochs * per_epoch, recipe.epochs * per_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, rate: float, device: torch.device | None
) -> None:
    """Scales the rate for each group. On a device it is a tensor, as a recorded step needs."""
    for group in optimizer.param_groups:
        scaled = rate * group["lr_scale"]
        if device is None:  # optimizers round a number and a tensor differently
            group["lr"] = scaled
        else:
            _rate_on_device(group, device).fill_(scaled)


def _rate_on_device(group: dict[str, Any], device: torch.device) -> Tensor:
    if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
        group["lr"] = torch.zeros((), device=device)
        if "capturable" in group:
            group["capturable"] = True
    return group["lr"]


class Formula:
    """The schedule "cosine" or "constant" of a recipe, a function of the step alone."""

    changes_momentum = False

    def __init__(
        self, recipe: Recipe, optimizer: Optimizer, per_epoch: int, device: torch.device | None
    ) -> None:
        self.recipe = recipe
        self.optimizer = optimizer
        self.per_epoch = per_epoch
        self.device = device

    def before_step(self, number: int) -> None:
        """Sets the rates of step `number`."""
        set_learning_rate(self.optimizer, self.value(number), self.device)

    def after_step(self) -> None:
        pass

    def end_epoch(self, loss: float) -> None:
        pass

    def value(self, number: int) -> float:
        """The learning rate of step `number`."""
        return learning_rate(self.recipe, number, self.per_epoch)

    def state_dict(self) -> None:
        """None: there is no state."""

    def load_state_dict(self, state: Any) -> None:
        pass


class Scheduled:
    """Schedulers of torch, each stepped after every batch or every epoch."""

    def __init__(self, optimizer: Optimizer, schedulers: list[tuple[Any, str]]) -> None:
        self.optimizer = optimizer
        self.schedulers = schedulers
        self.changes_momentum = any(getattr(s, "cycle_momentum", False) for s, _ in schedulers)

    def before_step(self, number: int) -> None:
        pass

    def after_step(self) -> None:
        """Steps what is stepped after every batch."""
        with warnings.catch_warnings():
            # the optimizer may have been called by a CUDA graph, or not at all by GradScaler
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            for scheduler, every in self.schedulers:
                if every == "batch":
                    _advance(scheduler)

    def end_epoch(self, loss: float) -> None:
        """Steps what is stepped after every epoch. loss: of the validation set, if there is one."""
        for scheduler, every in self.schedulers:
            if every == "epoch" and isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss)
            elif every == "epoch":
                _advance(scheduler)

    def value(self, number: int) -> float:
        """The learning rate of the next step, for weights."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        groups = [
            {name: _plain(group[name]) for name in _CHANGED if name in group}
            for group in self.optimizer.param_groups
        ]
        return {"schedulers": [s.state_dict() for s, _ in self.schedulers], "groups": groups}

    def load_state_dict(self, state: Any) -> None:
        """Raises ValueError for the state of other schedulers."""
        own = self.state_dict()
        for (scheduler, _), mine, stored in zip(
            self.schedulers, own["schedulers"], state["schedulers"], strict=True
        ):
            if stored.keys() != mine.keys():
                raise ValueError(f"the state of another scheduler than {type(scheduler).__name__}")
            scheduler.load_state_dict(stored)
        for group, stored in zip(self.optimizer.param_groups, state["groups"], strict=True):
            for name, value in stored.items():
                _check_numbers(name, value)
                if isinstance(group[name], Tensor):
                    group[name].fill_(value)
                else:
                    group[name] = value


def _advance(scheduler: Any) -> None:
    """Steps a scheduler; OneCycleLR, after the last step of the training, would leave its range."""
    if scheduler.last_epoch + 1 < getattr(scheduler, "total_steps", math.inf):
        scheduler.step()


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) else value


def _check_numbers(name: str, value: Any) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    if name not in _CHANGED or not all(
        type(n) in (int, float) and math.isfinite(n) and n >= 0 for n in numbers
    ):
        raise ValueError(f"the optimizer's {name} is {value!r}")


def build(
    recipe: Recipe,
    optimizer: Optimizer,
    per_epoch: int,
    device: torch.device | None,
    own: OwnScheduler | None = None,
) -> Formula | Scheduled:
    """The learning rates of a training. device: where rates are tensors; None: numbers.

    own: the user's function that makes a scheduler. Raises RunError if it makes none, or one whose
    state cannot be stored.
    """
    if own is None and isinstance(recipe.schedule, str):
        return Formula(recipe, optimizer, per_epoch, device)
    set_learning_rate(optimizer, recipe.optimizer.lr, device)
    schedulers: list[tuple[Any, str]] = []
    if own is not None:
        if recipe.warmup_epochs:
            raise RunError(
                "scheduler= replaces the recipe's learning rates: set warmup_epochs=0, and put a "
                "warm-up into your scheduler (torch.optim.lr_scheduler.SequentialLR)"
            )
        times = {"epoch": recipe.epochs, "batch": recipe.epochs * per_epoch}
        schedulers.append(_made(own, optimizer, times))
    else:
        assert not isinstance(recipe.schedule, str)
        warmup = round(recipe.warmup_epochs * per_epoch)
        if warmup and isinstance(recipe.schedule, OneCycleLR):
            raise RunError(
                f"OneCycleLR rises by itself (pct_start); set {option('warmup_epochs', 0.0)}"
            )
        if warmup:
            linear = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
            schedulers.append((linear, "batch"))
        main = recipe.schedule.build(optimizer, recipe.epochs * per_epoch)
        schedulers.append((main, _unit(main)))
    scheduled = Scheduled(optimizer, schedulers)
    _check_storable(scheduled)
    return scheduled


def _made(own: OwnScheduler, optimizer: Optimizer, times: dict[str, int]) -> tuple[Any, str]:
    """The user's scheduler and when it is stepped. times: how often each of these comes."""
    made = own(optimizer)
    scheduler, every = made if isinstance(made, tuple) and len(made) == 2 else (made, _unit(made))
    kinds = lr_scheduler.LRScheduler | lr_scheduler.ReduceLROnPlateau
    if not isinstance(scheduler, kinds) or every not in times:
        raise RunError(
            'scheduler= must return a torch scheduler of the optimizer, or (scheduler, "batch") '
            f"for one that is stepped after every batch; it returned {made!r:.80}"
        )
    if scheduler.optimizer is not optimizer:
        raise RunError("scheduler= must schedule the optimizer that it is given, not another one")
    if (total := getattr(scheduler, "total_steps", times[every])) < times[every]:
        raise RunError(
            f"the scheduler ends after total_steps={total}, but the training steps it after every "
            f"{every}: give it total_steps={times[every]}"
        )
    return scheduler, every


def _unit(scheduler: Any) -> str:
    return "batch" if isinstance(scheduler, _PER_BATCH) else "epoch"


def _check_storable(scheduled: Scheduled) -> None:
    """Raises RunError unless a checkpoint can hold the state: numbers, texts, tensors."""
    try:
        from_bytes(to_bytes(scheduled.state_dict()))
    except Exception as e:  # an object of any class may raise anything
        raise RunError(
            "the state of the scheduler cannot be stored in a checkpoint, which holds numbers, "
            f"texts and tensors: {first_line(e)}"
        ) from e
