"""What a benchmark is: a name and cells that are timed side by side, and what came of it.

A cell is one way of doing the work. Its setup, which is not timed, gives a ``Trial``: what is called again and again,
and how much work one call does. Everything that is told afterwards (rates, ratios) follows from seconds and work.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BenchReport", "BenchSettings", "Benchmark", "Cell", "CellResult", "Trial"]


@dataclass(frozen=True)
class BenchSettings:
    """What was asked for; plain values, so that it can be handed to another process."""

    config: str = "tiny"  # a name in ``sizes.CONFIGS``
    device: str = "cpu"
    rounds: int = 3  # every cell has its turn once a round
    reps: int = 1  # timed calls in one turn
    threads: int = 1
    implementations: tuple[str, ...] = ()  # "name=module:Class", see ``implementation.Implementation``
    isolate: bool = False  # every cell in a process of its own
    over: tuple[str, ...] = ()  # sweeps of ``growth``; all when empty
    compiled: bool = False  # with cells that ``torch.compile`` made

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        for name in ("rounds", "reps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Trial:
    """A cell that is ready to be timed."""

    call: Callable[[], Any]  # the work; called once to warm up, then timed
    work: Mapping[str, float] = field(default_factory=dict)  # unit -> how much of it one call does, e.g. audio_s
    values: Callable[[], Mapping[str, float]] | None = None  # read once after the timing: errors, latencies, fill
    count_flops: bool = True  # the first call runs under torch's FLOP counter
    count_memory: bool = True  # one more call runs under the allocator's eyes
    close: Callable[[], None] | None = None  # called in the end


@dataclass(frozen=True)
class Cell:
    """One way of doing the work."""

    name: str
    setup: Callable[[], Trial]


@dataclass(frozen=True)
class CellResult:
    """What was measured of one cell."""

    name: str
    seconds: tuple[float, ...]  # of every timed call, by the clock of the report
    work: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None  # bytes: most that one call held at a time beyond what was there before it
    resident: int | None = (
        None  # bytes: most that setup and first call added to the process, where it is the cell's own
    )
    flops: int | None = None  # of one call, as torch's counter sees them
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds of a call, the median."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Seconds between the quartiles; 0 for a single call."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first

    def rate(self, unit: str) -> float:
        """Work of a unit in one second.

        Raises:
            KeyError: The cell does no work of this unit.
        """
        return self.work[unit] / self.median

    def as_dict(self, peak: float | None = None) -> dict[str, Any]:
        """All of it as JSON takes it; ``peak`` is FLOP a second of the device, where it is known."""
        told: dict[str, Any] = {"name": self.name, "median_s": self.median, "iqr_s": self.spread}
        told |= {"seconds": list(self.seconds), "work": dict(self.work)}
        told["rates"] = {f"{unit}/s": self.rate(unit) for unit in self.work}
        if self.memory is not None:
            told["memory_bytes"] = self.memory
        if self.resident is not None:
            told["resident_bytes"] = self.resident
        if self.flops:
            told |= {"flop": self.flops, "flop/s": self.flops / self.median}
            if peak:
                told["mfu"] = self.flops / self.median / peak
        return told | ({"values": dict(self.values)} if self.values else {})


@dataclass(frozen=True)
class BenchReport:
    """Results of a benchmark's cells in one run."""

    benchmark: str
    settings: BenchSettings
    machine: Mapping[str, Any]  # see ``machine.machine_line``
    cells: tuple[CellResult, ...]
    findings: Mapping[str, float] = field(default_factory=dict)  # what the benchmark makes of them: ratios, exponents

    def __getitem__(self, name: str) -> CellResult:
        """The result of a cell.

        Raises:
            KeyError: There is none of that name.
        """
        found = {cell.name: cell for cell in self.cells}
        return found[name]

    def ratio(self, slow: str, fast: str) -> float:
        """How many times longer one cell takes than another: the median over the rounds of their ratio in one round.

        Both had their turns next to each other, so what slows a whole round down slows both.
        """
        pairs = zip(self[slow].seconds, self[fast].seconds, strict=True)
        return statistics.median(one / other for one, other in pairs)


class Benchmark(ABC):
    """Cells to be compared.

    A benchmark called ``name`` is the class ``<Name>Benchmark`` in ``fac_lightning/bench/<name>.py``.
    """

    name: str
    summary: str  # one line: what is measured
    takes: frozenset[str] = frozenset()  # of ``over`` and ``compiled``, those that mean something here

    @abstractmethod
    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """The cells, the one that others are compared with first; nothing heavy happens before a cell's setup.

        Called anew in every process of ``isolate``, so that cells have the same names each time.
        """

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """What follows from the cells, by name; nothing unless a benchmark says more."""
        return {}
