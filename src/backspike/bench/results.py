"""The measurements of a bench: rows per workload, medians, ratios to baselines and limits."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from .plan import ABOUT, Implementation
from .worker.task import Workload

if TYPE_CHECKING:
    from .gate import Verdict


_GLANCED = ("ours", "spikingjelly", "plain")


@dataclass
class Row:
    """The measurements of one implementation.

    failed: why there are none, or "". first: seconds of the first iterations of the fresh process.
    rounds: seconds of each iteration, by round. memory: bytes, and how they were measured. facts:
    what the worker reported. heap: whether the heap setting took effect. verdict: its gate.
    """

    implementation: Implementation
    failed: str = ""
    first: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    heap: bool = False
    torch: str = ""
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        return self.implementation.name

    def seconds(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the time per iteration."""
        times = [t for turn in self.rounds for t in turn]
        if len(times) < 2:
            return (times[0],) * 3 if times else (math.nan,) * 3
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        return low, middle, high

    @property
    def median(self) -> float:
        return self.seconds()[1]

    @property
    def bytes(self) -> float:
        return self.memory["bytes"] if self.memory else math.nan

    @property
    def measured(self) -> bool:
        return not self.failed and bool(self.rounds)


@dataclass(frozen=True)
class Glance:
    """Our fastest and most memory-efficient rows relative to a baseline.

    speed, memory: speed-up and relative memory against the baseline as installed, in bfloat16, and
    at its best; nan where it was not measured.
    """

    other: str
    fastest: Row
    leanest: Row
    speed: tuple[float, float, float]
    memory: tuple[float, float, float]


@dataclass
class Outcome:
    """All rows of a workload, including the limits.

    derivatives: share of nonzero surrogate derivatives by layer, if the workload sets one.
    """

    work: Workload
    rows: list[Row]
    derivatives: list[float] = field(default_factory=list)

    def ranked(self) -> list[Row]:
        """The implementations in the order of the plan, without the limits."""
        return [row for row in self.rows if not row.implementation.limit]

    def references(self) -> list[Row]:
        """The baselines of ratios: every other library and the plain loop, if measured."""
        return [
            r for r in self.ranked() if r.measured and r.implementation.settings.library != "ours"
        ]

    def against(self, most: int) -> list[Row]:
        """The first `most` baselines: all rows of SpikingJelly, then one per other library."""
        rows = [r for r in self.references() if r.implementation.settings.library == "spikingjelly"]
        for row in self.references():
            if row.implementation.settings.library not in {
                r.implementation.settings.library for r in rows
            }:
                rows.append(row)
        return rows[:most]

    def glance(self) -> Glance | None:
        """Compares with SpikingJelly if it was measured, else with the plain loop, else None."""
        rows = {
            name: [
                r for r in self.ranked() if r.measured and r.implementation.settings.library == name
            ]
            for name in _GLANCED
        }
        ours, others = rows["ours"], rows["spikingjelly"] or rows["plain"]
        if not ours or not others:
            return None
        chosen = [
            [
                r
                for r in others
                if not r.implementation.settings.heap and r.implementation.settings.bfloat16 == b
            ]
            for b in (0, 1)
        ]
        fastest, leanest = min(ours, key=lambda r: r.median), min(ours, key=lambda r: r.bytes)
        speed = [
            min((r.median for r in rs), default=math.nan) / fastest.median
            for rs in (*chosen, others)
        ]
        memory = [
            leanest.bytes / min((r.bytes for r in rs), default=math.nan) for rs in (*chosen, others)
        ]
        name = "SpikingJelly" if rows["spikingjelly"] else "the plain loop"
        return Glance(
            name,
            fastest,
            leanest,
            (speed[0], speed[1], speed[2]),
            (memory[0], memory[1], memory[2]),
        )

    def limit(self, bfloat16: bool) -> Row | None:
        """The shortest time for the workload's products alone, or a neuron layer's copying."""
        part = "copy" if self.work.kind == "neuron" else "products"
        fits = [
            r
            for r in self.rows
            if r.measured and r.implementation.limit and r.implementation.settings.part == part
        ]
        fits = [r for r in fits if r.implementation.settings.bfloat16 == bfloat16]
        return min(fits, key=lambda r: r.median, default=None)

    def share(self, row: Row) -> float:
        """The limit in the row's precision divided by its time; 1: no overhead at all."""
        limit = self.limit(row.implementation.settings.bfloat16)
        return limit.median / row.median if limit and row.measured else math.nan

    def per_second(self, row: Row) -> float:
        """Samples per second; for a single neuron layer neuron updates, for a stream timesteps."""
        n = self.work.T * self.work.B if self.work.kind in ("neuron", "stream") else self.work.B
        return n / row.median if row.measured else math.nan

    def speeds(self) -> dict[str, float]:
        """The measured limits: GB/s copied (read and written) and GFLOP/s."""
        found = {}
        for row in self.rows:
            if row.measured and row.implementation.limit:
                found[row.name] = (row.facts.get("bytes") or row.facts["flop"]) / row.median / 1e9
        return found

    def floor(self, bfloat16: bool) -> tuple[float, float] | None:
        """The bytes an iteration moves at least, and the seconds this takes at copy speed."""
        copy = next(
            (r for r in self.rows if r.measured and r.implementation.settings.part == "copy"), None
        )
        limit = self.limit(bfloat16)
        if copy is None or limit is None:
            return None
        moved = limit.facts.get("moved", 16 * self.work.T * self.work.B)
        return moved, moved * copy.median / copy.facts["bytes"]

    def spikes(self) -> list[float]:
        """The firing rate of each layer, from the first row that was measured."""
        return next((r.facts["spikes"] for r in self.ranked() if r.measured), [])

    def inputs(self) -> list[float]:
        """The share of nonzero inputs of each convolution and linear layer."""
        return next(
            (r.facts["inputs"] for r in self.rows if r.measured and "inputs" in r.facts), []
        )

    def summary(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        return {
            "workload": self.work.name,
            "about": ABOUT[self.work.name],
            "work": asdict(self.work),
            **self._measured(),
        }

    def _measured(self) -> dict[str, Any]:
        return {
            "spikes": self.spikes(),
            "inputs": self.inputs(),
            "derivatives": self.derivatives,
            "speeds": self.speeds(),
            "rows": [self._row(row) for row in self.rows],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        low, middle, high = row.seconds()
        ratios = (
            {}
            if row.implementation.limit
            else {r.name: r.median / middle for r in self.references()}
        )
        lean = (
            {}
            if row.implementation.limit
            else {r.name: row.bytes / r.bytes for r in self.references() if r.bytes}
        )
        return {
            "name": row.name,
            "settings": asdict(row.implementation.settings),
            "failed": row.failed or None,
            "median": middle,
            "quartiles": [low, high],
            "per_second": self.per_second(row),
            "memory": row.memory,
            "speed_against": ratios,
            "memory_against": lean,
            "share_of_limit": math.nan if row.implementation.limit else self.share(row),
            "gate": asdict(row.verdict) if row.verdict else None,
            "facts": row.facts,
            "heap_kept": row.heap,
            "torch": row.torch,
            "first": row.first,
            "rounds": row.rounds,
        }


@dataclass
class Bench:
    """Everything that one command measured. peers: versions of the other libraries."""

    machine: dict[str, Any]
    peers: dict[str, str]
    rounds: int
    quick: bool
    outcomes: list[Outcome] = field(default_factory=list)

    def complete(self, command: str) -> dict[str, Any]:
        """The content of bench.json."""
        from ..version import __version__

        return {
            "backspike": __version__,
            "command": command,
            "machine": self.machine,
            "peers": self.peers,
            "rounds": self.rounds,
            "quick": self.quick,
            "workloads": [outcome.summary() for outcome in self.outcomes],
        }
