"""The endless stream of preference pairs: tasks drawn by temperature, shuffled, packed, cut into optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from fac_lightning.data.bad_rows import silent, with_clips
from fac_lightning.data.layout import Cost
from fac_lightning.data.mixing import draw_rows, mixing_shares
from fac_lightning.data.packing import Budget, pack_lines
from fac_lightning.data.preference_corpus import PairCorpus
from fac_lightning.data.preference_rows import AnswerRow, PairCollator, PairRows
from fac_lightning.data.stream import PackedStream, StreamPlace, shard_lines
from fac_lightning.types import PreferenceBatch

__all__ = ["FixedPairs", "PairPlan", "PairStream", "plan_pairs", "share_pair_totals"]


class PairPlan(NamedTuple):
    """A pair to be laid out."""

    place: int  # of its draw in the endless sequence
    number: int  # always 0: a pair is never split
    source: int  # its task
    row: int
    cost: Cost

    @property
    def id(self) -> str:
        """For messages."""
        return f"pair {self.row}"


def plan_pairs(
    corpus: PairCorpus,
    budget: Budget,
    seed: int,
    temperature: float = 1.0,
    shard: int = 0,
    num_shards: int = 1,
    start: int = 0,
) -> Iterator[PairPlan]:
    """Plans without end. A task is drawn, then its next pair; a task's pairs come in a new order every time round.

    All shards go through one sequence and take turns. Pairs that fit no line are left out.
    """
    members = [np.flatnonzero(corpus.tasks == task) for task in range(len(corpus.task_names))]
    sizes = [len(each) for each in members]
    orders = [partial(_shuffled, each, seed, task) for task, each in enumerate(members)]
    for draw in draw_rows(orders, sizes, mixing_shares(sizes, temperature), seed, shard, num_shards, start):
        cost = corpus.cost(draw.row)
        if budget.takes(cost):
            yield PairPlan(draw.place, 0, draw.source, draw.row, cost)


def _shuffled(members: np.ndarray, seed: int, task: int, epoch: int) -> Iterator[int]:
    return iter(np.random.default_rng([seed, 1, task, epoch]).permutation(members).tolist())


class PairStream(PackedStream):
    """Packed lines of pairs without end.

    Args:
        corpus: Where pairs come from.
        collate: Makes a batch of the pairs of one line.
        budget: Of a line.
        seed: Order of pairs and draw of tasks.
        temperature: Of the draw of tasks; see ``mixing_shares``.
        window: Lines per optimizer step.
        look_ahead: Lines kept open while packing.
        shard: Rank of this process.
        num_shards: Processes.
        start: Where to go on.
        virtual_epoch: Optimizer steps of a virtual epoch; all there are when None.
    """

    def __init__(
        self,
        corpus: PairCorpus,
        collate: PairCollator,
        budget: Budget,
        seed: int,
        temperature: float = 1.0,
        window: int = 1,
        look_ahead: int = 64,
        shard: int = 0,
        num_shards: int = 1,
        start: StreamPlace | None = None,
        virtual_epoch: int | None = None,
    ) -> None:
        super().__init__(budget, window, look_ahead, shard, num_shards, start, virtual_epoch, corpus.task_names)
        self.corpus, self.make_batch, self.seed, self.temperature = corpus, collate, seed, temperature

    def plans(self, start: int) -> Iterator[PairPlan]:
        """Shuffled pairs of mixed tasks."""
        return plan_pairs(self.corpus, self.budget, self.seed, self.temperature, self.shard, self.num_shards, start)

    def load(self, plan: PairPlan) -> PairRows:
        """The pair, its clips read."""
        pair = self.corpus.pair(plan.row)
        return replace(pair, chosen=_read(pair.chosen), rejected=_read(pair.rejected))

    def mute(self, plan: PairPlan) -> PairRows:
        """The pair with silence for its clips and a weight of 0."""
        pair = self.corpus.pair(plan.row)
        return replace(pair, weight=0.0, chosen=_silent(pair.chosen), rejected=_silent(pair.rejected))

    def collate(self, rows: list[PairRows]) -> PreferenceBatch:
        """One packed line."""
        return self.make_batch(rows)

    def share(self, batches: list[PreferenceBatch]) -> list[PreferenceBatch]:
        """Lines with the pairs of all of them as their totals."""
        return share_pair_totals(batches)

    def mark(
        self, batch: PreferenceBatch, sources: tuple[str, ...], left_out: tuple[tuple[str, str], ...]
    ) -> PreferenceBatch:
        """The line with the tasks of its pairs and what is left out; a muted pair does not count."""
        totals = batch.task_totals if sources else torch.zeros_like(batch.task_totals)
        return replace(batch, line=replace(batch.line, sources=sources, left_out=left_out), task_totals=totals)


def _read(answer: AnswerRow) -> AnswerRow:
    return replace(answer, row=with_clips(answer.row))


def _silent(answer: AnswerRow) -> AnswerRow:
    return replace(answer, row=silent(answer.row))  # its labels stay: not every loss is a number over none of them


class FixedPairs:
    """One pass over all pairs in fixed order, packed once; every process gets the same number of lines.

    Args:
        corpus: Where pairs come from.
        collate: Makes a batch of the pairs of one line.
        budget: Of a line.
        look_ahead: Lines kept open while packing.
        max_lines: Keep the first lines only.
        shard: Rank of this process.
        num_shards: Processes. The first lines stand in again where the number of lines is no multiple of it.
    """

    def __init__(
        self,
        corpus: PairCorpus,
        collate: PairCollator,
        budget: Budget,
        look_ahead: int = 64,
        max_lines: int | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        pairs = (pair for pair in map(corpus.pair, range(len(corpus))) if budget.fits(pair))
        lines = list(islice(pack_lines(pairs, budget, look_ahead), max_lines))
        self.lines = shard_lines(lines, shard, num_shards)
        self.make_batch = collate

    def __len__(self) -> int:
        """Lines of this process."""
        return len(self.lines)

    def __iter__(self) -> Iterator[PreferenceBatch]:
        return map(self.make_batch, self.lines)


def share_pair_totals(batches: Sequence[PreferenceBatch]) -> list[PreferenceBatch]:
    """The lines of one optimizer step, each with the pairs of all of them as its totals."""
    totals = sum((batch.task_totals for batch in batches[1:]), batches[0].task_totals)
    return [replace(batch, task_totals=totals) for batch in batches]
