"""``fac bench train``: a training step, forward, backward and optimizer, on packed conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fac_lightning.bench.base import Benchmark, BenchSettings, Cell, Trial
from fac_lightning.bench.conversations import make_conversations
from fac_lightning.bench.implementation import Implementation, load_implementation
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.sizes import sizes_of

__all__ = ["TrainBenchmark", "training_trial"]


class TrainBenchmark(Benchmark):
    """Four conversations of 39.6 s in all: ours, the plain model at the rate of the codes, and others."""

    name = "train"
    summary = "a training step: forward, backward, optimizer"

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""
        made = [
            Cell("ours", partial(training_trial, OurImplementation, settings)),
            Cell("k=1, no head", partial(training_trial, partial(OurImplementation, 1, False), settings)),
        ]
        for word in settings.implementations:
            name, implementation = load_implementation(word)
            made.append(Cell(name, partial(training_trial, partial(_given, implementation), settings)))
        return made


def training_trial(make: Callable[[], Any], settings: BenchSettings) -> Trial:
    """A training step of an implementation on the batch of all training benchmarks."""
    sizes = sizes_of(settings.config)
    conversations = make_conversations(sizes)
    implementation: Implementation = make()
    implementation.build(sizes, settings.device)
    batch = implementation.train_batch(conversations)
    positions = getattr(batch, "lengths", None)
    work = {"audio_s": sum(each.seconds for each in conversations)}
    if positions is not None:
        work["positions"] = float(positions.sum())
    return Trial(partial(implementation.train_step, batch), work)


def _given(implementation: Any) -> Any:
    return implementation
