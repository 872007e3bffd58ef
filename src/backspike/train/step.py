"""A training step: forward, backward, optimizer.

Losses, correct answers and gradient norms are summed on the device, so that no step waits for it. A
loss or gradient that became NaN or infinite stays in its sum and is found when the sums are read.
In float16, the gradient of the scaled loss may overflow: such a step is skipped and counted, and
the scale is lowered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import RunError, option
from ..neuron.lif import check_gradients, neuron_parameters
from ..readout import TWO
from ..system import distributed
from .checkpoint import checked_numbers, load_optimizer, load_scaler
from .cuda_graph import Replayed
from .gradient import Outputs, backward
from .nonfinite import origin
from .schedule import update_average
from .setup import Setup

READ_EVERY = 20  # steps between two reads of the sums where reading waits for the device


class Step:
    """Takes one step after the other on the network of a `Setup`."""

    def __init__(self, setup: Setup, where: object, not_recorded: Callable[[str], None]) -> None:
        """where: its text is the position in error messages. not_recorded: called with the reason
        if no CUDA graph can be recorded."""
        self.setup = setup
        self.where = where
        self.number = 0  # of the next step
        self.sums = torch.zeros(3, dtype=torch.float64, device=setup.device)  # of this epoch
        self.samples = 0  # of this epoch
        self.loss = math.nan  # mean of this epoch when it was last read
        self.parts: list[int] = []  # of the current step
        self.skipped = 0  # steps in float16 whose gradient overflowed, since the start
        self.skipped_before = 0  # this epoch
        self.neurons_learn = bool(neuron_parameters(setup.network.model))
        self.parallel = setup.ranks.data_parallel(setup.network.model)
        self.outputs = Outputs(self.parallel, setup.train.autocast)
        self.replayed = (
            Replayed(self.compute, setup.device, not_recorded) if setup.record_steps else None
        )

    @property
    def waits(self) -> bool:
        """Whether every step reads the sums, which costs nothing on a CPU."""
        return self.setup.device.type == "cpu"

    def __call__(self, x: Tensor, y: Tensor, parts: list[int]) -> None:
        """Takes a step on this rank's share of a batch; parts: their sizes over all ranks."""
        setup, recipe = self.setup, self.setup.recipe
        if not setup.network.model.training:
            setup.network.train()
            for norm in setup.frozen_norms:
                norm.eval()
        setup.rates.before_step(self.number)
        self.parts = parts
        (self.replayed or self.compute)(x, y)
        setup.rates.after_step()
        self.number += 1
        self.samples += sum(parts)
        if self.waits or self.number % READ_EVERY == 0:
            self.read()
        if setup.averaged is not None:
            # a young average forgets faster, or the initial weights would stay in it for long
            decay = min(recipe.ema, self.number / (self.number + 9))
            update_average(setup.averaged, setup.network, decay)

    def compute(self, x: Tensor, y: Tensor) -> None:
        """Forward, backward, optimizer. Can be recorded as a CUDA graph: everything that changes is
        a tensor, and nothing waits for the device."""
        setup, ranks, batch_size = self.setup, self.setup.ranks, sum(self.parts)
        setup.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=setup.device)
        correct = torch.zeros((), dtype=torch.int64, device=setup.device)
        shares = [ranks.share(samples) for samples in self.parts]
        for number, part in enumerate(zip(x.split(shares, dim=1), y.split(shares)), 1):
            last = number == len(self.parts)
            with nullcontext() if last else distributed.no_sync(self.parallel):
                part_loss, part_correct = self._backward(*part, batch_size)
            total += part_loss / ranks.size
            correct += part_correct
        total, correct = ranks.all_reduce(total, correct)
        if setup.scaler is not None:
            setup.scaler.unscale_(setup.optimizer)
        parameters = [p for p in setup.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.sums[0] += total * batch_size
        self.sums[1] += correct
        overflow = setup.scaler is not None and not math.isfinite(norm.item())
        if not overflow:
            self.sums[2] += norm
        if self.waits:
            self._finite_sums(x)
        if self.neurons_learn:
            check_gradients(setup.network.model)
        if setup.recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, setup.recipe.clip, norm)
        # not scaler.step: after an overflow in the first step, the momentum of torch's fused SGD
        # would be uninitialised memory
        if overflow:
            self.skipped += 1
        else:
            setup.optimizer.step()
        if setup.scaler is not None:
            setup.scaler.update()

    def _scale(self, value: Tensor) -> Tensor:
        return value if self.setup.scaler is None else self.setup.scaler.scale(value)

    def _backward(self, x: Tensor, y: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """The loss of a part, weighted by its share of the batch, and its correct answers."""
        setup, readout = self.setup, self.setup.network.readout

        def loss(o: Tensor) -> Tensor:
            value = setup.recipe.loss_value(o, readout(o), y)
            if setup.potential is not None:
                value = value + setup.potential.loss()
            # averaged over ranks later
            return self._scale(value * (len(y) * setup.ranks.size / batch_size))

        value, o = backward(
            setup.recipe, self.outputs, x, loss, lambda: distributed.no_sync(self.parallel)
        )
        right = y.argmax(-1) if y.dim() == 2 else y  # mixed samples count as their larger share
        if isinstance(readout, TWO):
            readout.observe(o, right)
        value = value / self._scale(torch.ones_like(value))
        return value, (readout(o).argmax(-1) == right).sum()

    def freeze_neurons(self) -> None:
        """Stops the learning of the neurons' parameters."""
        learning = [p for p in neuron_parameters(self.setup.network.model) if p.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        if learning and self.replayed:
            self.replayed.forget()

    def end_epoch(self) -> None:
        """Checks that the weights are finite and updates the readout."""
        setup = self.setup
        self._check_finite()
        readout = setup.network.readout
        if isinstance(readout, TWO):
            readout.end_epoch()
            if setup.averaged is not None:
                setup.averaged.readout.load_state_dict(readout.state_dict())
        setup.ranks.broadcast(setup.evaluated)  # running statistics may differ

    def begin_epoch(self) -> None:
        self.sums.zero_()
        self.samples = 0
        self.skipped_before = self.skipped

    def scaling(self) -> dict[str, Any]:
        """Of float16: the steps skipped in this epoch and the scale of the loss; else nothing."""
        if self.setup.scaler is None:
            return {}
        skipped = self.skipped - self.skipped_before
        return {"skipped_steps": skipped, "loss_scale": self.setup.scaler.get_scale()}

    def read(self) -> tuple[float, int]:
        """Waits for the device; returns the sums of losses and correct answers in this epoch."""
        loss_sum, correct = self._finite_sums()
        if self.samples:
            self.loss = loss_sum / self.samples
        return loss_sum, correct

    def _finite_sums(self, x: Tensor | None = None) -> tuple[float, int]:
        """Sums of losses and correct answers. x: the input of this step, to find where NaN began.

        Raises RunError if the loss or the gradient is not finite.
        """
        losses, correct, norms = self.sums.tolist()
        if math.isfinite(losses) and math.isfinite(norms):
            return losses, int(correct)
        what, value = ("gradient", norms) if math.isfinite(losses) else ("loss", losses)
        text = f"the {what} became {value} in {self.where}"
        if x is None:
            raise self._diverged(f"{text} or in the {READ_EVERY - 1} steps before it")
        with self.setup.train.autocast():
            raise self._diverged(f"{text}: {origin(self.setup.network.model, x)}")

    def _check_finite(self) -> None:
        """Raises RunError for NaN or infinity, before it can replace a good checkpoint."""
        self.read()
        for name, value in self.setup.network.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise self._diverged(f"{name} became NaN or infinite before {self.where}")

    def _diverged(self, what: str) -> RunError:
        lr = self.setup.recipe.optimizer.lr
        return RunError(
            f"{what}; train again with a lower {option('optimizer.lr')} ({lr}) "
            f"or with {option('clip', 1)} (the last checkpoint is intact)"
        )

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint. Raises RunError if anything in it is not finite."""
        setup = self.setup
        self._check_finite()
        return {
            "network": setup.network.state_dict(),
            "averaged": setup.averaged and setup.averaged.state_dict(),
            # without the parameter groups, which the recipe defines
            "optimizer": {"state": setup.optimizer.state_dict()["state"]},
            "potential": setup.potential and setup.potential.state_dict(),
            "rates": setup.rates.state_dict(),
            "scaler": setup.scaler
            and [setup.scaler.state_dict(), self.skipped, self.skipped_before],
            "sums": [*self.read(), self.samples],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        setup = self.setup
        setup.network.load_state_dict(state["network"])
        load_optimizer(setup.optimizer, state["optimizer"])
        if setup.averaged is not None:
            setup.averaged.load_state_dict(state["averaged"])
        if setup.potential is not None:
            setup.potential.load_state_dict(state["potential"])
        setup.rates.load_state_dict(state.get("rates"))  # older checkpoints have none
        if setup.scaler is not None:
            scaler, *counts = state["scaler"]
            self.skipped, self.skipped_before = checked_numbers(counts, int, int)
            load_scaler(setup.scaler, scaler)
        *_, self.number = checked_numbers(state["position"], int, int, int)
        *sums, self.samples = checked_numbers(state["sums"], float, int, int)
        self.sums[:2] = torch.tensor(sums, dtype=torch.float64)
