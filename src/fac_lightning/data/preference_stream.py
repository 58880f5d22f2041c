"""The endless stream of preference pairs: tasks drawn by temperature, shuffled, packed, cut into optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice

import numpy as np

from fac_lightning.data.packing import Budget, pack_lines
from fac_lightning.data.preference_corpus import PairCorpus
from fac_lightning.data.preference_rows import PairCollator, PairRows
from fac_lightning.data.stream import PackedStream, shard_lines
from fac_lightning.types import PreferenceBatch

__all__ = ["FixedPairs", "PairStream", "share_pair_totals", "stream_pairs", "task_shares"]


def task_shares(counts: Sequence[int], temperature: float) -> np.ndarray:
    """Probability of each task, proportional to ``count ** (1 / temperature)``: by size at 1, evener above."""
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}: 1 draws tasks by their size, more evens them"
        )
    powers = np.asarray(counts, dtype=np.float64) ** (1 / temperature)
    shares: np.ndarray = powers / powers.sum()
    return shares


def stream_pairs(
    corpus: PairCorpus, budget: Budget, seed: int, temperature: float = 1.0, shard: int = 0, num_shards: int = 1
) -> Iterator[PairRows]:
    """Pairs without end. A task is drawn, then its next pair; a task's pairs come in a new order every time round.

    All shards go through one sequence and take turns. Pairs that fit no line are left out.
    """
    members = [np.flatnonzero(corpus.tasks == task) for task in range(len(corpus.task_names))]
    shares = task_shares([len(each) for each in members], temperature)
    orders = [_shuffled(each, [seed, 1, task]) for task, each in enumerate(members)]
    draws = np.random.default_rng([seed, 0])
    for turn in count():
        index = next(orders[int(draws.choice(len(shares), p=shares))])
        if turn % num_shards == shard:
            pair = corpus.pair(index)
            if budget.fits(pair):
                yield pair


def _shuffled(members: np.ndarray, seed: Sequence[int]) -> Iterator[int]:
    for epoch in count():
        yield from np.random.default_rng([*seed, epoch]).permutation(members).tolist()


class PairStream(PackedStream):
    """Packed lines of pairs without end.

    Args:
        corpus: Where pairs come from.
        collate: Makes a batch of the pairs of one line.
        budget: Of a line.
        seed: Order of pairs and draw of tasks.
        temperature: Of the draw of tasks; see ``task_shares``.
        window: Lines per optimizer step.
        look_ahead: Lines kept open while packing.
        shard: Rank of this process.
        num_shards: Processes.
        skip: Windows to leave out, counted over all workers: where an interrupted run goes on.
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
        skip: int = 0,
    ) -> None:
        super().__init__(budget, window, look_ahead, shard, num_shards, skip)
        self.corpus, self.make_batch, self.seed, self.temperature = corpus, collate, seed, temperature

    def rows(self, shard: int, num_shards: int) -> Iterator[PairRows]:
        """Shuffled pairs, laid out."""
        return stream_pairs(self.corpus, self.budget, self.seed, self.temperature, shard, num_shards)

    def collate(self, rows: list[PairRows]) -> PreferenceBatch:
        """One packed line."""
        return self.make_batch(rows)

    def share(self, batches: list[PreferenceBatch]) -> list[PreferenceBatch]:
        """Lines with the pairs of all of them as their totals."""
        return share_pair_totals(batches)


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
