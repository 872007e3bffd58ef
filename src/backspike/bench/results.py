"""What a bench measured, as values: rows of a workload, medians, ratios to each peer, the share of the limit reached."""

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
    """One implementation: what its gate said and what its rounds took. failed: why it has no figures."""

    implementation: Implementation
    failed: str = ""
    first: list[float] = field(
        default_factory=list
    )  # seconds of the iterations of the fresh process
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each iteration, by round
    memory: dict[str, Any] | None = None  # bytes, and how they were measured
    facts: dict[str, Any] = field(default_factory=dict)
    heap: bool = False
    torch: str = ""
    verdict: Verdict | None = None

    @property
    def name(self) -> str:
        return self.implementation.name

    def seconds(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of an iteration."""
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
    """Our fastest and our leanest row against another library: as installed, in bfloat16, and at its best (nan: not measured).

    speed: how many times as fast; memory: the part of its memory."""

    other: str
    fastest: Row
    leanest: Row
    speed: tuple[float, float, float]
    memory: tuple[float, float, float]


@dataclass
class Outcome:
    """All rows of a workload, the limits among them."""

    work: Workload
    rows: list[Row]
    derivatives: list[float] = field(
        default_factory=list
    )  # share that is not zero, by layer, where the workload wants one

    def ranked(self) -> list[Row]:
        """The implementations, in the order of the plan; what is no limit."""
        return [row for row in self.rows if not row.implementation.limit]

    def references(self) -> list[Row]:
        """What ratios are taken to: every peer and the plain loop, as far as measured."""
        return [
            r for r in self.ranked() if r.measured and r.implementation.settings.library != "ours"
        ]

    def against(self, most: int) -> list[Row]:
        """The references that a table has room for: of SpikingJelly all rows, then one of each other, the plain loop first."""
        rows = [r for r in self.references() if r.implementation.settings.library == "spikingjelly"]
        for row in self.references():
            if row.implementation.settings.library not in {
                r.implementation.settings.library for r in rows
            }:
                rows.append(row)
        return rows[:most]

    def glance(self) -> Glance | None:
        """Against SpikingJelly where it was measured, else against the plain loop; None where there is nothing to compare."""
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
        """The fastest way this machine has to do the products of the workload; for neurons alone, to move its bytes."""
        part = "copy" if self.work.kind == "neuron" else "products"
        fits = [
            r
            for r in self.rows
            if r.measured and r.implementation.limit and r.implementation.settings.part == part
        ]
        fits = [r for r in fits if r.implementation.settings.bfloat16 == bfloat16]
        return min(fits, key=lambda r: r.median, default=None)

    def share(self, row: Row) -> float:
        """Of the limit, in the row's precision: 1 means that nothing but the products (or the moving of bytes) takes time."""
        limit = self.limit(row.implementation.settings.bfloat16)
        return limit.median / row.median if limit and row.measured else math.nan

    def per_second(self, row: Row) -> float:
        """Samples a second; for neurons alone, neuron updates."""
        n = self.work.T * self.work.B if self.work.kind == "neuron" else self.work.B
        return n / row.median if row.measured else math.nan

    def speeds(self) -> dict[str, float]:
        """What the limits say in their own units: GB/s copied (read and written), GFLOP/s."""
        found = {}
        for row in self.rows:
            if row.measured and row.implementation.limit:
                found[row.name] = (row.facts.get("bytes") or row.facts["flop"]) / row.median / 1e9
        return found

    def floor(self, bfloat16: bool) -> tuple[float, float] | None:
        """Bytes that a training iteration moves at least, and the seconds that moving them takes at the measured copy speed."""
        copy = next(
            (r for r in self.rows if r.measured and r.implementation.settings.part == "copy"), None
        )
        limit = self.limit(bfloat16)
        if copy is None or limit is None:
            return None
        moved = limit.facts.get("moved", 16 * self.work.T * self.work.B)
        return moved, moved * copy.median / copy.facts["bytes"]

    def spikes(self) -> list[float]:
        """The share of spikes of each layer, in the first row that was measured."""
        return next((r.facts["spikes"] for r in self.ranked() if r.measured), [])

    def inputs(self) -> list[float]:
        """The share of what each convolution and linear layer is given that is not zero."""
        return next(
            (r.facts["inputs"] for r in self.rows if r.measured and "inputs" in r.facts), []
        )

    def summary(self) -> dict[str, Any]:
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
    """Everything that one command measured."""

    machine: dict[str, Any]
    peers: dict[str, str]  # versions in the Python of the peers
    rounds: int
    quick: bool
    outcomes: list[Outcome] = field(default_factory=list)

    def complete(self, command: str) -> dict[str, Any]:
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
