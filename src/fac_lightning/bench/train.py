"""``fac bench train``: a training step, forward, backward and optimizer, on conversations of 39.4 s in all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, Trial
from fac_lightning.bench.conversations import make_conversations, pack
from fac_lightning.bench.implementation import Implementation, load_implementation, synchronize
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.plain import Waste, padded_line, plain_step
from fac_lightning.bench.sizes import sizes_of
from fac_lightning.callbacks import RegionalCompilation

__all__ = ["TrainBenchmark", "training_trial"]

WASTES = {
    "head on all positions": Waste(whole_head=True),
    "logits of all rows": Waste(all_rows=True),
    "padded": Waste(padding=True),
    "plain: all three": Waste(True, True, True),
}
ROOF = "one large product"
#: rows and columns of its square matrices
SIDES = {"tiny": 512}
OTHER_SIDE, CUDA_SIDE = 2048, 8192


class TrainBenchmark(Benchmark):
    """Four conversations, ours beside the plain ways, the model at the rate of the codes, and others.

    The wastes run on our own model and optimizer. In ``k=1, no head`` every code has a position of its own in the
    backbone, which says it by a matrix. ``one large product`` is what the device reaches at best: the product of two
    square matrices, in turns with the rest.
    """

    name = "train"
    summary = "a training step: forward, backward, optimizer"
    takes = frozenset({"compiled"})

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""

        @cache
        def ours() -> OurImplementation:
            made = OurImplementation()
            made.build(sizes_of(settings.config), settings.device)
            return made

        cells = [Cell("ours", partial(_our_trial, ours, settings))]
        cells += [Cell(name, partial(_wasteful_trial, ours, waste, settings)) for name, waste in WASTES.items()]
        cells.append(Cell("k=1, no head", partial(training_trial, partial(OurImplementation, 1, False), settings)))
        cells.append(Cell(ROOF, partial(_roof_trial, settings)))
        if settings.compiled:
            cells.append(Cell("ours, compiled", partial(_compiled_trial, settings)))
        for word in settings.implementations:
            name, given = load_implementation(word)
            cells.append(Cell(name, partial(training_trial, partial(_same, given), settings)))
        return cells

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """How much longer the plain step takes, and more it holds and computes; how near ours is to the roof."""
        ours, plain, roof = report["ours"], report["plain: all three"], report[ROOF]
        found = {"plain / ours, time": report.ratio(plain.name, ours.name)}
        if ours.memory and plain.memory:
            found["plain / ours, peak memory"] = plain.memory / ours.memory
        if ours.flops and plain.flops:
            found["plain / ours, FLOPs"] = plain.flops / ours.flops
        if ours.flops and roof.flops:
            found["GFLOP/s of one large product"] = roof.flops / roof.median / 1e9
            found["GFLOP/s of ours"] = ours.flops / ours.median / 1e9
            found["ours, share of one large product's FLOP/s"] = (
                report.ratio(roof.name, ours.name) * ours.flops / roof.flops
            )
        if report.settings.compiled:
            found["ours / compiled, time"] = report.ratio(ours.name, "ours, compiled")
        return found


def training_trial(make: Callable[[], Any], settings: BenchSettings) -> Trial:
    """A training step of an implementation on the batch of all training benchmarks."""
    sizes = sizes_of(settings.config)
    conversations = make_conversations(sizes)
    implementation: Implementation = make()
    implementation.build(sizes, settings.device)
    batch = implementation.train_batch(conversations)
    work = {"audio_s": sum(each.seconds for each in conversations)}
    if isinstance(implementation, OurImplementation):
        work["positions"] = float(batch.lengths.sum())
    return Trial(partial(implementation.train_step, batch), work)


def _our_trial(ours: Callable[[], OurImplementation], settings: BenchSettings) -> Trial:
    conversations = make_conversations(sizes_of(settings.config))
    batch = ours().train_batch(conversations)
    work = {"audio_s": sum(each.seconds for each in conversations), "positions": float(batch.lengths.sum())}
    return Trial(partial(ours().train_step, batch), work)


def _roof_trial(settings: BenchSettings) -> Trial:
    sizes = sizes_of(settings.config)
    on_cpu = torch.device(settings.device).type == "cpu"
    side = SIDES.get(settings.config, OTHER_SIDE) if on_cpu else CUDA_SIDE
    one, other = torch.randn(2, side, side, device=settings.device, dtype=getattr(torch, sizes.dtype))
    out = torch.empty_like(one)
    return Trial(lambda: torch.mm(one, other, out=out), count_memory=False)


def _compiled_trial(settings: BenchSettings) -> Trial:
    """Our step with compiled layers; compiling, in the first step, is timed by the time of day."""
    sizes = sizes_of(settings.config)
    conversations, ours = make_conversations(sizes), OurImplementation()
    ours.build(sizes, settings.device)
    batch = ours.train_batch(conversations)
    RegionalCompilation().setup(None, ours.task, "fit")  # type: ignore[arg-type]
    start = time.perf_counter()
    ours.train_step(batch)
    synchronize(settings.device)
    first = time.perf_counter() - start
    work = {"audio_s": sum(each.seconds for each in conversations), "positions": float(batch.lengths.sum())}
    # compiled code is more than the counter knows
    return Trial(partial(ours.train_step, batch), work, lambda: {"first step s": first}, count_flops=False)


def _wasteful_trial(ours: Callable[[], OurImplementation], waste: Waste, settings: BenchSettings) -> Trial:
    """A step with waste; what is counted as work are the audio and the positions without padding."""
    conversations = make_conversations(sizes_of(settings.config))
    geometry = ours().model.geometry
    useful = pack(conversations, geometry)
    batch = padded_line(conversations, geometry) if waste.padding else useful
    work = {"audio_s": sum(each.seconds for each in conversations), "positions": float(useful.lengths.sum())}
    return Trial(partial(plain_step, ours(), batch.to(settings.device), waste), work)


def _same(given: Any) -> Any:
    return given
