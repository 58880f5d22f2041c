"""``fac bench headline``: the report's claim, at equal data: a backbone at 5 Hz with a head against 25 Hz without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell
from fac_lightning.bench.conversations import make_conversations, pack
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.sizes import build_model, sizes_of
from fac_lightning.bench.train import training_trial
from fac_lightning.estimate import MACHINES, Machine, RateComparison, RateVariant, ShapesOnly, compare_rates

__all__ = ["HeadlineBenchmark", "predict"]

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
        """How many times the higher rates take longer and compute more, and what ``fac estimate`` says of it."""
        base, predicted = report["5 Hz, head"], predict(report.settings, _machine(report))
        found: dict[str, float] = {}
        for cell in report.cells[1:]:
            rate = cell.name.partition(",")[0]
            found[f"{rate} / 5 Hz, time"] = report.ratio(cell.name, base.name)
            if cell.flops and base.flops:
                found[f"{rate} / 5 Hz, FLOPs"] = cell.flops / base.flops
            ratio = predicted.train_ratio(cell.name, base.name)
            found[f"{rate} / 5 Hz, time predicted"] = ratio
            found[f"{rate} / 5 Hz, measured over predicted"] = report.ratio(cell.name, base.name) / ratio
        return found


def predict(settings: BenchSettings, machine: Machine) -> RateComparison:
    """What a step at each rate costs by the cost model of ``fac estimate``: from shapes, nothing is computed."""
    sizes = sizes_of(settings.config)
    conversations, variants = make_conversations(sizes), {}
    for name, (group_size, refined) in RATES.items():
        with ShapesOnly():
            model = build_model(sizes, "cpu", group_size, refined)
        variants[name] = RateVariant(model, pack(conversations, model.geometry))
    return compare_rates(variants, machine, half=sizes.dtype == "bfloat16")


def _machine(report: BenchReport) -> Machine:
    """The machine of the cost model that was measured on; one that it does not know counts as an H100."""
    name = str(report.machine.get("gpu", "")).lower()
    if not name:
        return MACHINES["cpu"]
    return next((machine for key, machine in MACHINES.items() if key in name), MACHINES["h100"])
