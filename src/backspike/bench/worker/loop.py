"""The requests that a worker answers.

    set_up   import the library, make the data, run three iterations and measure their peak memory
    gate     compute the small network for the comparison with float64
    run      time iterations for about the given number of seconds

Exceptions are sent as text, since their class may not exist in the other process.
"""

from __future__ import annotations

import time
from importlib import metadata
from typing import Any

import torch

from . import libraries, limits, networks
from .memory import DevicePeak, Peak, system, use_heap
from .stream import Stream
from .task import Settings, Workload
from .training import Layer, Network

# iterations queued on a GPU before waiting for it; their mean is the time of one
IN_FLIGHT = 5


def main() -> None:
    """Answers requests until the pipe is closed."""
    system("workers").serve(Worker().answer)


class Worker:
    """One implementation of one workload."""

    task: Any

    def answer(self, do: str, request: dict[str, Any]) -> dict[str, Any]:
        """Runs the method named `do`; an exception becomes {"error": text}."""
        try:
            return getattr(self, do)(**request)
        except Exception as e:
            text = " ".join(str(e).split())
            return {"error": f"{type(e).__name__}: {text[:300]}"}

    def set_up(
        self, work: dict[str, Any], settings: dict[str, Any], threads: int
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.work, self.settings = Workload.read(work), Settings(**settings)
        heap = use_heap(self.settings)
        if self.settings.library == "limits":
            copies = self.settings.part == "copy"
            self.task = (
                limits.Copy(self.work, self.settings)
                if copies
                else limits.Products(self.work, self.settings)
            )
            return {"seconds": self._times(3), "facts": self.task.facts(), "heap": heap}
        self.lib = libraries.load(self.settings)
        given = networks.data(self.work)
        _wake(self.settings)
        peak = DevicePeak() if self.settings.device == "cuda" else Peak()
        self.task = self._make(self.work, self.settings, given)
        seconds = self._times(3)
        memory = {"bytes": peak.extra(), "how": peak.how}
        return {
            "seconds": seconds,
            "memory": memory,
            "heap": heap,
            "facts": self.task.facts(),
            "torch": torch.__version__,
        }

    def gate(self, work: dict[str, Any], settings: dict[str, Any], file: str) -> dict[str, Any]:
        small = Workload.read(work)
        made = self._make(small, Settings(**settings), networks.data(small))
        torch.save(made.computed(), file)
        width = small.widths[0] if small.widths else None
        return {"neuron": vars(self.lib.facts(width)), "version": self._version()}

    def run(self, seconds: float) -> dict[str, Any]:
        times = self._times(1)
        if times[0] < seconds / 4:  # discard a short first iteration: its cache is cold
            times = []
        while sum(times) < seconds:
            times += self._times(1)
        return {"seconds": times}

    def _make(self, work: Workload, settings: Settings, given: Any) -> Any:
        kind = {"neuron": Layer, "stream": Stream}.get(work.kind, Network)
        return kind(work, self.lib, settings, given)

    def _times(self, n: int) -> list[float]:
        seconds, on_gpu = [], self.settings.device == "cuda"
        for _ in range(n):
            start = time.perf_counter()
            for _ in range(IN_FLIGHT if on_gpu else 1):
                self.task.iteration()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - start) / (IN_FLIGHT if on_gpu else 1))
        return seconds

    def _version(self) -> str:
        package = {"ours": "backspike", "plain": "torch"}.get(
            self.settings.library, self.settings.library
        )
        return metadata.version(package)


def _wake(settings: Settings) -> None:
    """Starts threads and loads the code that any training needs, before memory is measured."""
    with torch.autocast(settings.device, torch.bfloat16, enabled=settings.bfloat16):
        convolution = torch.nn.Conv2d(3, 8, 3).to(settings.device)
        linear = torch.nn.Linear(8 * 36, 8).to(settings.device)
        outputs = linear(convolution(torch.rand(8, 3, 8, 8, device=settings.device)).flatten(1))
    torch.nn.functional.cross_entropy(
        outputs.float(), torch.arange(8, device=settings.device)
    ).backward()
    torch.optim.SGD(linear.parameters(), lr=0.0).step()
