"""Finds settings with which a training fits into a memory budget: `backspike train --memory 6GB`.

Every setting is rehearsed in a separate process on the recipe's data: measurements, a few steps, a
test and a checkpoint. The peak of that process counts, including weights, optimizer, averaged
weights, data and libraries. The budget also becomes the recipe's `memory_limit`: the training
cannot take more, and on a GPU data sets that need a large part of it stay in host memory. The first
setting to change is what neurons save for backward (`neuron.memory`), which costs only time. Then a
step is split into parts (`accumulate`): two rehearsals predict how many, peak = a + b * part, and a
third confirms it. A budget that the libraries, the weights, their gradients and the optimizer
exceed is refused before any rehearsal.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, RunError, option
from ..recipes.recipe import Recipe
from ..recipes.values import Neuron
from ..system import heap, workers
from ..system.events import Listener
from ..system.workers import Worker, WorkerFailed

if TYPE_CHECKING:
    from torch import nn

# values of neuron.memory, the fastest first; all give the exact gradient
LADDER = ("exact", "recompute", "checkpoint")
HEADROOM = 0.95  # usable part of the budget: heap fragmentation varies peaks by a few percent
STEPS = 4  # of a rehearsal; the first one allocates what the others reuse


@dataclass(frozen=True)
class Rehearsal:
    """The cost of one setting: peak in bytes (None: more than is free) and seconds per step."""

    recipe: Recipe
    peak: int | None
    seconds: float | None
    batch_norm: bool = False

    def fits(self, budget: int) -> bool:
        return self.peak is not None and self.peak <= HEADROOM * budget


@dataclass(frozen=True)
class Plan:
    """The settings for a budget in bytes: train `recipe`; `str(plan)` states the cost."""

    budget: int
    before: Rehearsal
    after: Rehearsal

    @property
    def recipe(self) -> Recipe:
        return self.after.recipe

    def __str__(self) -> str:
        if self.after is self.before:
            cost = f"expected peak {_cost(self.before)}"
            return f"fits into {size_text(self.budget)} as it is: {cost}; {_limit(self.budget)}"
        chosen = _settings(self.before.recipe, self.recipe)
        costs = f"{self._costs()}; {_limit(self.budget)}"
        return f"to fit into {size_text(self.budget)}: {chosen}; {costs}"

    def _costs(self) -> str:
        before, after = self.before, self.after
        costs = [f"expected peak {_cost(after)} instead of {_cost(before)}"]
        if before.seconds and after.seconds:
            costs.append(f"{100 * (after.seconds / before.seconds - 1):+.0f} % time")
        if before.recipe.part_size == after.recipe.part_size:
            costs.append("the same gradients")
        elif after.batch_norm:
            sizes = f"{after.recipe.part_size} samples instead of {before.recipe.part_size}"
            costs.append(f"BatchNorm sees {sizes}")
        return "; ".join(costs)


def plan_memory(
    recipe: Recipe,
    budget: int | str,
    model: nn.Module | None = None,
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    device: str | None = None,
    threads: int | None = None,
    listen: Listener | None = None,
) -> Plan:
    """Finds the fastest settings with which `recipe` trains within a budget.

    budget: bytes or text such as "0.5GiB"; for the process on a CPU, for a device on CUDA.
    device: as in `bs.fit`.
    threads: number of CPU threads of the rehearsals; None: torch's default.
    model, train, test, validation: your own, as for `bs.fit`; every rehearsal gets a copy, so their
        classes must be in a file that can be imported. What the neurons of a model of your own
        save for backward is not changed, only the number of parts of a step.
    listen: called with an event for every rehearsal, see docs/run-folder.md.

    Raises RunError if nothing fits, naming the smallest possible budget, or if your own model or
    data cannot be sent to another process, and RecipeError if the budget cannot be read.
    """
    own = _packed(model=model, train=train, validation=validation, test=test)
    size = parse_size(budget) if isinstance(budget, str) else budget
    if train is not None:
        from .setup import with_loader

        recipe = with_loader(recipe, train)
    recipe = replace(recipe, memory_limit=size)
    notify = listen or (lambda event: None)
    if model is None and (least := _least(recipe, device)) > HEADROOM * size:
        raise RunError(_hopeless(size, least))
    rehearsals: list[Rehearsal] = []

    def rehearse(candidate: Recipe) -> Rehearsal:
        found = _rehearse(candidate, device, threads, own)
        rehearsals.append(found)
        text = f"tried {_settings(recipe, candidate) or 'as it is'}: {_cost(found)}"
        measured = {"peak": found.peak, "seconds_per_step": found.seconds}
        notify({"event": "rehearsal", **measured, "text": text})
        return found

    before = rehearse(recipe)
    fixed = model is not None or recipe.own_neurons
    steps = (_in_parts if fixed else _ladder)(recipe, size, rehearse, before)
    for found in chain([before], steps):
        if found.fits(size):
            plan = Plan(size, before, found)
            settings = _settings(recipe, plan.recipe)
            notify({"event": "memory", "budget": size, "settings": settings, "text": str(plan)})
            return plan
    raise RunError(_impossible(size, rehearsals))


def _ladder(
    recipe: Recipe, budget: int, rehearse: Callable[[Recipe], Rehearsal], found: Rehearsal
) -> Iterator[Rehearsal]:
    """Rehearsals, the fastest settings first. found: the one of the recipe as it is."""
    now = _memory(recipe)
    for memory in LADDER[LADDER.index(now) + 1 :] if now in LADDER else ():
        recipe = recipe.replace({"neuron.memory": memory})
        yield (found := rehearse(recipe))
    yield from _in_parts(recipe, budget, rehearse, found)


def _memory(recipe: Recipe) -> str | None:
    """What the recipe's neurons save for backward; None for those of the user's own code."""
    return recipe.neuron.memory if isinstance(recipe.neuron, Neuron) else None


def _in_parts(
    recipe: Recipe, budget: int, rehearse: Callable[[Recipe], Rehearsal], whole: Rehearsal
) -> Iterator[Rehearsal]:
    """Rehearsals with smaller and smaller parts, from the size that two rehearsals predict."""
    size = recipe.part_size
    if size == 1:
        return
    quarter = rehearse(_split(recipe, max(1, size // 4)))
    points = [r for r in (whole, quarter) if r is not None and r.peak is not None]
    if len(points) < 2:
        points.append(rehearse(_split(recipe, max(1, size // 16))))
    part = _predicted(points, HEADROOM * budget)
    tried = {r.recipe.part_size: r for r in (quarter, *points)}
    while part >= 1:
        candidate = _split(recipe, part)
        yield tried.get(candidate.part_size) or rehearse(candidate)
        size = candidate.part_size
        part = min(size - 1, math.floor(0.8 * size)) if part > 1 else 0


def _split(recipe: Recipe, part: int) -> Recipe:
    """The recipe with at most `part` samples at once."""
    return replace(recipe, accumulate=math.ceil(recipe.batch_size / part))


def _predicted(points: list[Rehearsal], limit: float) -> int:
    """The largest part within the limit, on the line through two rehearsals; at least 1."""
    known = [(r.recipe.part_size, r.peak) for r in points if r.peak is not None]
    if len(known) < 2 or known[0][0] == known[1][0]:
        return 1
    (n0, peak0), (n1, peak1) = known[:2]
    slope = (peak0 - peak1) / (n0 - n1)
    return max(1, math.floor(n1 + (limit - peak1) / slope)) if slope > 0 else 1


def _impossible(budget: int, rehearsals: list[Rehearsal]) -> str:
    peaks = [r.peak for r in rehearsals if r.peak is not None]
    if not peaks:
        return (
            "no setting could be tried in the free memory of this machine; "
            "close other programs or use a smaller network"
        )
    return (
        f"this recipe does not train within {size_text(budget)} ({_limit(budget)}): "
        f"expected peak {size_text(min(peaks))} at least; "
        f"the smallest budget that works is {_budget_text(min(peaks))} "
        f"(less with {option('neuron.memory', '8bit')}, "
        "whose gradients are a few percent off, a smaller network or a smaller T)"
    )


def _hopeless(budget: int, least: int) -> str:
    return (
        f"this recipe does not train within {size_text(budget)} ({_limit(budget)}): "
        f"the libraries, the weights, their gradients and the optimizer take {size_text(least)} "
        f"before the first sample; give more than {_budget_text(least)}, or use a smaller network"
    )


def _limit(budget: int) -> str:
    usable = size_text(HEADROOM * budget)
    return f"limit {usable}, as {100 * (1 - HEADROOM):.0f} % of the budget is a safety margin"


def _budget_text(peak: int) -> str:
    """The budget for a peak, with two digits, rounded up."""
    budget = peak / HEADROOM
    unit = 10**7 if budget < 10**9 else 10**8
    return size_text(math.ceil(budget / unit) * unit)


def _settings(before: Recipe, after: Recipe) -> str:
    """The changed settings, as the user would set them."""
    changed = []
    if _memory(before) != _memory(after):
        changed.append(option("neuron.memory", _memory(after)))
    if before.accumulate != after.accumulate:
        changed.append(option("accumulate", after.accumulate))
    return " ".join(changed)


def _cost(rehearsal: Rehearsal) -> str:
    if rehearsal.peak is None or rehearsal.seconds is None:
        return "more than the free memory"
    return f"{size_text(rehearsal.peak)}, {rehearsal.seconds:.3g} s per step"


_UNITS = {
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(text: str) -> int:
    """Reads a size in bytes, such as "6GB", "800 MB" or "0.5GiB". Raises RecipeError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?B)", text.strip(), re.IGNORECASE)
    if not match or not 0 < float(match[1]) < 1e15:
        raise RecipeError(
            f"a memory size is a number and a unit, such as 6GB, 800MB or 0.5GiB; got {text!r}"
        )
    return round(float(match[1]) * _UNITS[match[2].upper()])


def size_text(size: float) -> str:
    """A size with three digits that `parse_size` can read, such as "6GB" or "0.55GB"."""
    unit = "GB" if size >= 10**9 else "MB"
    return f"{float(f'{size / _UNITS[unit]:.3g}'):g}{unit}"


# ---- one rehearsal, in a separate process --------------------------------------------------------


def _packed(**own: Any) -> bytes | None:
    """The user's own model and data for another process; None without any. Raises RunError."""
    given = {name: value for name, value in own.items() if value is not None}
    try:
        return workers.pack(given, "cannot be rehearsed in another process") if given else None
    except ValueError as e:
        raise RunError(str(e)) from e


def _rehearse(
    recipe: Recipe, device: str | None, threads: int | None, own: bytes | None = None
) -> Rehearsal:
    torch = sys.modules.get("torch")
    threads = threads or (torch.get_num_threads() if torch else None)
    with Worker(quiet=True) as worker:
        try:
            return worker.call(_measure, recipe, own, device, threads, heap.mode())
        except WorkerFailed as e:
            if e.code < 0:  # the system ended it, as it does when memory runs out
                return Rehearsal(recipe, None, None)
            raise RunError(f"measuring the memory in a short run failed: {e}") from None


def _measure(
    recipe: Recipe, own: bytes | None, device: str | None, threads: int | None, mode: str
) -> Rehearsal:
    """Runs the rehearsal in this separate process."""
    _limit_memory()
    heap.use(mode)
    import torch

    from ..data import DataError
    from . import failures, trainer
    from .setup import limited_on_gpu

    if threads:
        torch.set_num_threads(threads)
    try:
        given = workers.unpack(own) if own else {}
        with limited_on_gpu(recipe, device):
            seconds, batch_norm = trainer.rehearse(recipe, STEPS, device, **given)
    except (RunError, DataError, ValueError, RuntimeError, MemoryError) as e:
        if failures.out_of_memory(e):
            return Rehearsal(recipe, None, None)
        raise RunError(failures.first_line(e)) from None
    return Rehearsal(recipe, _peak(), median(seconds[1:]), batch_norm)


def _least(recipe: Recipe, device: str | None) -> int:
    """A peak in bytes below which `recipe` cannot train with any setting; nothing is trained."""
    with Worker(quiet=True) as worker:
        try:
            return worker.call(_measure_least, recipe, device)
        except WorkerFailed as e:
            raise RunError(f"measuring the memory of the libraries failed: {e}") from None


def _measure_least(recipe: Recipe, device: str | None) -> int:
    """The libraries in this separate process, and what an optimizer step leaves in memory.

    The step is taken on the meta device, which computes and allocates nothing.
    """
    import torch

    from .. import report  # noqa: F401  (a training imports it)
    from .failures import first_line
    from .schedule import parameter_groups
    from .setup import choose_device
    from .start_from import freeze

    try:
        with torch.device("meta"):
            model = recipe.network()
            freeze(model, recipe.freeze)
            optimizer = recipe.optimizer.build(parameter_groups(model, recipe))
    except (ValueError, TypeError, RuntimeError) as e:
        raise RunError(f"the recipe cannot be built: {first_line(e)}") from None
    for group in optimizer.param_groups:
        group["fused"] = False  # the meta device has no fused steps
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    states = [v for state in optimizer.state.values() for v in state.values()]
    kept = [*model.state_dict().values(), *learned, *filter(torch.is_tensor, states)]
    libraries = _peak() if choose_device(device).type == "cpu" else 0
    average = list(model.state_dict().values()) if recipe.ema else []
    return libraries + sum(t.numel() * t.element_size() for t in (*kept, *average))


def _limit_memory() -> None:
    """Limits this process to the free memory and makes it the first to be killed without any."""
    try:
        import resource

        with open("/proc/meminfo") as f:
            free = next(
                int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable")
            )
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = free if hard == resource.RLIM_INFINITY else min(free, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("1000")
    except (ImportError, OSError, StopIteration, ValueError):
        return  # not Linux, or not permitted


def _peak() -> int:
    """The peak memory in bytes of this process, or, on a GPU, of torch there."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        raise RunError(
            "this system does not report the peak memory of a process; use Linux or macOS"
        ) from None
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
