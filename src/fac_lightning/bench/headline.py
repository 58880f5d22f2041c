"""``fac bench headline``: the report's claim, at equal data: a backbone at 5 Hz with a head against 25 Hz without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.train import training_trial

__all__ = ["HeadlineBenchmark"]

#: cell -> frames to a position, and whether a refined head says them
RATES = {"5 Hz, head": (5, True), "12.5 Hz, no head": (2, False), "25 Hz, no head": (1, False)}


class HeadlineBenchmark(Benchmark):
    """A training step on the same conversations at three rates, all of them without any of the plain wastes."""

    name = "headline"
    summary = "a training step at 5 Hz with a head, and at 12.5 and 25 Hz without, on the same conversations"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        return [
            Cell(name, partial(training_trial, partial(OurImplementation, *rate), settings))
            for name, rate in RATES.items()
        ]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How many times the higher rates take longer, and how many times more they compute."""
        base = report["5 Hz, head"]
        found: dict[str, float] = {}
        for cell in report.cells[1:]:
            rate = cell.name.partition(",")[0]
            found[f"{rate} / 5 Hz, time"] = report.ratio(cell.name, base.name)
            if cell.flops and base.flops:
                found[f"{rate} / 5 Hz, FLOPs"] = cell.flops / base.flops
        return found
