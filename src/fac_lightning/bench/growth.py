"""``fac bench growth``: how the cost of a training step grows with rows, frames to a position, vocabulary and audio.

All sweeps start from four conversations, groups of 5 and the vocabulary of the size. Exponents are fits of
``cost = c * quantity ** p``: 1 is proportional, 0 costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from fac_lightning.bench.base import Benchmark, BenchReport, BenchSettings, Cell, CellResult, Trial
from fac_lightning.bench.conversations import TRAIN_SHAPES, make_conversations
from fac_lightning.bench.encode import growth
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.bench.sizes import sizes_of
from fac_lightning.types import IGNORE

__all__ = ["SWEEPS", "GrowthBenchmark", "points_of"]

#: the rows of the batch sweep are alike, so that what grows is their number; about the mean of ``TRAIN_SHAPES``
EQUAL_SHAPE = (18, 31)
BATCHES = (1, 2, 4, 8, 16)
GROUP_SIZES = (1, 2, 3, 5, 10)
VOCABULARIES = {"tiny": (2000, 4000, 8000)}
OTHER_VOCABULARIES = (8000, 32000, 64000, 151936)
LENGTHS = (0.5, 1, 2, 4)
#: what ``--over`` takes
SWEEPS = ("batch", "k", "vocabulary", "audio")


@dataclass(frozen=True)
class Point:
    """One cell of a sweep: what is swept, how far, and the model and batch that this makes."""

    sweep: str
    amount: float
    rows: int = len(TRAIN_SHAPES)
    shapes: tuple[tuple[int, int], ...] = TRAIN_SHAPES  # groups heard and said
    group_size: int | None = None  # that of the size when None
    vocab_size: int | None = None

    @property
    def name(self) -> str:
        """Of the cell."""
        return f"audio x{self.amount:g}" if self.sweep == "audio" else f"{self.sweep} {self.amount:g}"


class GrowthBenchmark(Benchmark):
    """A training step of ours at several values of one quantity, all else as it is; always with the head."""

    name = "growth"
    summary = "a training step over rows of the batch, frames to a position, vocabulary and length of audio"
    takes = frozenset({"over"})

    def cells(self, settings: BenchSettings) -> Sequence[Cell]:
        """See ``Benchmark.cells``."""

        @cache
        def ours(group_size: int | None, vocab_size: int | None) -> OurImplementation:
            sizes = sizes_of(settings.config)
            made = OurImplementation(group_size)
            made.build(replace(sizes, vocab_size=vocab_size or sizes.vocab_size), settings.device)
            return made

        return [Cell(point.name, partial(_trial, point, ours, settings)) for point in points_of(settings)]

    def findings(self, report: BenchReport) -> Mapping[str, float]:
        """Exponents of every sweep, and what an entry of the vocabulary costs a label."""
        points = points_of(report.settings)
        found: dict[str, float] = {}
        for sweep in dict.fromkeys(point.sweep for point in points):
            amounts = [point.amount for point in points if point.sweep == sweep]
            cells = [report[point.name] for point in points if point.sweep == sweep]
            for what, cost in _COSTS.items():
                found[f"{sweep}: exponent of {what}"] = growth(amounts, [cost(cell) for cell in cells])
            if sweep == "vocabulary":
                found["vocabulary: FLOPs a label, entry and channel"] = _label_flops(report, amounts, cells)
        return found


def points_of(settings: BenchSettings) -> list[Point]:
    """The cells of the sweeps that were asked for; all of them when none was.

    Raises:
        ValueError: There is no such sweep.
    """
    unknown = [name for name in settings.over if name not in SWEEPS]
    if unknown:
        raise ValueError(f"--over {unknown[0]}: there is no such sweep; it takes {', '.join(SWEEPS)}")
    vocabularies = VOCABULARIES.get(settings.config, OTHER_VOCABULARIES)
    points = [Point("batch", rows, rows, (EQUAL_SHAPE,)) for rows in BATCHES]
    points += [Point("k", k, group_size=k) for k in GROUP_SIZES]
    points += [Point("vocabulary", size, vocab_size=size) for size in vocabularies]
    points += [Point("audio", factor, shapes=_scaled(factor)) for factor in LENGTHS]
    return [point for point in points if not settings.over or point.sweep in settings.over]


def _scaled(factor: float) -> tuple[tuple[int, int], ...]:
    return tuple((round(factor * heard), round(factor * said)) for heard, said in TRAIN_SHAPES)


def _trial(point: Point, ours: Callable[[int | None, int | None], OurImplementation], settings: BenchSettings) -> Trial:
    sizes = sizes_of(settings.config)
    conversations = make_conversations(sizes, point.rows, point.shapes)
    k = None if point.group_size == sizes.group_size else point.group_size  # one model where one serves
    vocab_size = None if point.vocab_size == sizes.vocab_size else point.vocab_size
    made = ours(k, vocab_size)
    batch = made.train_batch(conversations)
    values = {
        "positions": float(batch.lengths.sum()),
        "text labels": float((batch.text_labels != IGNORE).sum()),
        "codes": float((batch.speech_labels != IGNORE).sum()),
    }
    work = {"audio_s": sum(each.seconds for each in conversations)}
    return Trial(partial(made.train_step, batch), work, lambda: values)


#: what is fitted, of a cell
_COSTS: dict[str, Callable[[CellResult], float]] = {
    "FLOPs": lambda cell: cell.flops or 1,
    "time": lambda cell: cell.median,
    "peak memory": lambda cell: cell.memory or 1,
    "positions": lambda cell: cell.values["positions"],
}


def _label_flops(report: BenchReport, amounts: Sequence[float], cells: Sequence[CellResult]) -> float:
    """FLOPs between the smallest and the largest vocabulary, over labels, entries and width."""
    first, last = cells[0], cells[-1]
    entries = (amounts[-1] - amounts[0]) * last.values["text labels"] * sizes_of(report.settings.config).dim
    return ((last.flops or 0) - (first.flops or 0)) / entries
