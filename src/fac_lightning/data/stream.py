"""The endless training stream: planned in one process, cut into optimizer steps, laid out and read in any.

The plan of a stream says which rows lie in which line. It is made of lengths alone, by the process that trains, and
depends on data and seed, not on workers; these get whole optimizer steps to lay out and read, and their results come
back in order. What a resumed run has seen is planned again and never read.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from torch.utils.data import Dataset

from fac_lightning.data.bad_rows import passage_with_clips, silent_passage
from fac_lightning.data.errors import BadData
from fac_lightning.data.layout import Passage, lay_out_line
from fac_lightning.data.packing import Budget, Packable, line_of, pack_lines, share_totals
from fac_lightning.data.row_plans import RowPlan, RowPlanner, plan_rows
from fac_lightning.data.row_source import RowSource
from fac_lightning.types import SpeechTextBatch

__all__ = ["FixedLines", "LineStream", "PackedStream", "PlannedWindow", "StreamPlace", "shard_lines"]

T_ = TypeVar("T_")

log = logging.getLogger(__name__)


class Planned(Packable, Protocol):
    """What lies in a planned line."""

    @property
    def place(self) -> int:
        """Of its draw in the endless sequence."""

    @property
    def number(self) -> int:
        """Among the rows of its draw."""

    @property
    def source(self) -> int:
        """Number of its source."""


@dataclass(frozen=True)
class StreamPlace:
    """Where a stream goes on, as one process counts."""

    virtual_epoch: int = 0
    windows: int = 0  # of this virtual epoch, that are done
    draw: int = 0  # of the endless sequence, at which this virtual epoch began
    number: int = 0  # of the first row, among those of that draw


class PlannedWindow(NamedTuple):
    """The lines of one optimizer step, to be laid out and read."""

    virtual_epoch: int
    number: int  # in its virtual epoch
    begin: tuple[int, int]  # draw and number of row with which the virtual epoch began
    seen: int  # draws of the endless sequence that planning has looked at, over all processes
    lines: list[list[Any]]


class PackedStream(Dataset[Any], ABC):
    """Packed lines without end, ``window`` at a time: the micro-batches of one optimizer step.

    Iterating it gives them one after the other. A ``DataLoader`` with ``sampler=stream.windows()`` gives the same with
    any number of workers.

    A *virtual epoch* is a number of optimizer steps behind which no line is left open. Going on from a place means to
    plan again from the beginning of its virtual epoch; with ``virtual_epoch=None`` from the beginning of all.

    Args:
        budget: Of a line.
        window: Lines per optimizer step.
        look_ahead: Lines kept open while packing.
        shard: Rank of this process.
        num_shards: Processes.
        start: Where to go on.
        virtual_epoch: Optimizer steps of a virtual epoch; all there are when None.
        names: Of the sources.
    """

    def __init__(
        self,
        budget: Budget,
        window: int = 1,
        look_ahead: int = 64,
        shard: int = 0,
        num_shards: int = 1,
        start: StreamPlace | None = None,
        virtual_epoch: int | None = None,
        names: Sequence[str] = ("train",),
    ) -> None:
        super().__init__()
        self.budget, self.window, self.look_ahead = budget, window, look_ahead
        self.shard, self.num_shards, self.start = shard, num_shards, start or StreamPlace()
        self.virtual_epoch, self.names = virtual_epoch, tuple(names)

    @abstractmethod
    def plans(self, start: int) -> Iterator[Planned]:
        """What is packed, without end, from a draw on; shards take turns over the draws."""

    @abstractmethod
    def load(self, plan: Any) -> Any:
        """What is planned, laid out, its clips read.

        Raises:
            BadData: It cannot be used.
        """

    @abstractmethod
    def mute(self, plan: Any) -> Any:
        """What is planned, of the right shape, with nothing to learn; nothing is read."""

    @abstractmethod
    def collate(self, rows: list[Any]) -> Any:
        """A batch of the rows of one line."""

    @abstractmethod
    def share(self, batches: list[Any]) -> list[Any]:
        """The batches of one optimizer step, told how much is in all of them."""

    @abstractmethod
    def mark(self, batch: Any, sources: tuple[str, ...], left_out: tuple[tuple[str, str], ...]) -> Any:
        """A batch, told where its rows come from and what is not in it."""

    def windows(self) -> Iterator[PlannedWindow]:
        """The plan, from ``start`` on."""
        place = self.start
        virtual, skip, begin = place.virtual_epoch, place.windows, (place.draw, place.number)
        while True:
            tail: Planned | None = None

            def rows(begin: tuple[int, int] = begin) -> Iterator[Planned]:
                nonlocal tail
                for tail in self.plans(begin[0]):
                    if (tail.place, tail.number) >= begin:
                        yield tail

            most = None if self.virtual_epoch is None else self.virtual_epoch * self.window
            lines = pack_lines(rows(), self.budget, self.look_ahead, most)
            number = 0
            while packed := list(islice(lines, self.window)):
                if number >= skip:
                    assert tail is not None
                    yield PlannedWindow(virtual, number, begin, tail.place + 1, packed)
                number += 1
            assert tail is not None
            begin = (tail.place, tail.number)  # the row that would have opened one more line
            virtual, skip = virtual + 1, max(0, skip - number)

    def __getitem__(self, window: PlannedWindow) -> list[Any]:
        """The batches of a window, laid out and read."""
        return self.share([self._line(line) for line in window.lines])

    def __iter__(self) -> Iterator[list[Any]]:
        return (self[window] for window in self.windows())

    def _line(self, plans: Sequence[Any]) -> Any:
        rows, sources, left_out = [], [], []
        for plan in plans:
            name = self.names[plan.source]
            try:
                rows.append(self.load(plan))
                sources.append(name)
            except BadData as error:
                left_out.append((name, str(error)))
        if not rows:
            rows = [self.mute(plans[0])]
        return self.mark(self.collate(rows), tuple(sources), tuple(left_out))


class LineStream(PackedStream):
    """Packed dialogues without end.

    Args:
        planners: Of the sources.
        shares: Probability of each source.
        seed: Order of rows and draw of sources and modes.
        **options: Those of ``PackedStream``.
    """

    def __init__(
        self,
        planners: Sequence[RowPlanner],
        shares: Any,
        seed: int,
        window: int = 1,
        shard: int = 0,
        num_shards: int = 1,
        start: StreamPlace | None = None,
        look_ahead: int = 64,
        virtual_epoch: int | None = None,
        names: Sequence[str] = ("train",),
    ) -> None:
        super().__init__(planners[0].budget, window, look_ahead, shard, num_shards, start, virtual_epoch, names)
        self.planners, self.shares, self.seed = list(planners), shares, seed
        self.sample_rate = sample_rate(planners[0].source)

    def plans(self, start: int) -> Iterator[RowPlan]:
        """Shuffled dialogues of mixed sources."""
        return plan_rows(self.planners, self.shares, self.seed, self.shard, self.num_shards, start)

    def load(self, plan: RowPlan) -> Passage:
        """The turns, their clips read; all of a line are laid out at once."""
        return passage_with_clips(self.planners[plan.source].passage(plan.row, plan.part))

    def mute(self, plan: RowPlan) -> Passage:
        """The turns as they were planned, all of them context."""
        passage = self.planners[plan.source].passage(plan.row, plan.part, sketch=True)
        return replace(silent_passage(passage), context=len(passage.turns))

    def collate(self, rows: list[Passage]) -> SpeechTextBatch:
        """One packed line."""
        source = self.planners[0].source
        row, lengths = lay_out_line(rows, source.chat, source.geometry, source.reply)
        ids = tuple(passage.row_id for passage in rows)
        return line_of(row, lengths, ids, self.budget.positions, self.sample_rate)

    def share(self, batches: list[SpeechTextBatch]) -> list[SpeechTextBatch]:
        """Lines with the labelled tokens of all of them as their totals."""
        return share_totals(batches)

    def mark(
        self, batch: SpeechTextBatch, sources: tuple[str, ...], left_out: tuple[tuple[str, str], ...]
    ) -> SpeechTextBatch:
        """The line with its sources and what is left out."""
        return replace(batch, sources=sources, left_out=left_out, seconds=batch.seconds if sources else 0.0)


class FixedLines:
    """One pass over a source in fixed order, packed once; every process gets the same number of lines.

    Modes have the weights that their schedule ends with.

    Args:
        planner: Of the source.
        seed: Draw of modes.
        look_ahead: Lines kept open while packing.
        max_lines: Keep the first lines only.
        shard: Rank of this process.
        num_shards: Processes. The first lines stand in again where the number of lines is no multiple of it.
    """

    def __init__(
        self,
        planner: RowPlanner,
        seed: int,
        look_ahead: int = 64,
        max_lines: int | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        plans = (
            RowPlan(index, number, 0, index, part)
            for index in range(len(planner.source))
            for number, part in enumerate(planner.plan(index, seed, 0, math.inf))
        )
        lines = list(islice(pack_lines(plans, planner.budget, look_ahead), max_lines))
        self.lines = shard_lines(lines, shard, num_shards)
        self.stream = LineStream([planner], [1.0], seed, names=("val",))
        self._told: set[str] = set()

    def __len__(self) -> int:
        """Lines of this process."""
        return len(self.lines)

    def __iter__(self) -> Iterator[SpeechTextBatch]:
        for number, lines in enumerate(self.lines):
            (line,) = self.stream[PlannedWindow(0, number, (0, 0), 0, [lines])]
            for _, reason in line.left_out:
                if reason not in self._told:
                    self._told.add(reason)
                    log.warning("left out of validation: %s", reason)
            yield line


def sample_rate(source: RowSource) -> int:
    """Hz of the clips of a source; 0 where there is no speech."""
    return source.geometry.sample_rate if source.geometry else 0


def fill(lines: Iterable[Sequence[Packable]], budget: Budget) -> float:
    """Mean share of the positions of some lines that is used."""
    sizes = [sum(row.cost.positions for row in line) for line in lines]
    return sum(sizes) / len(sizes) / budget.positions


def shard_lines(lines: Sequence[T_], shard: int, num_shards: int) -> list[T_]:
    """The lines of one process; the first stand in again so that every process gets as many."""
    each = -(-len(lines) // num_shards)
    return [lines[i % len(lines)] for i in range(shard, each * num_shards, num_shards)]
