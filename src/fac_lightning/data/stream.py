"""The endless training stream: shuffled dialogues, laid out, packed, cut into optimizer steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fac_lightning.data.corpus import Corpus
from fac_lightning.data.layout import Row
from fac_lightning.data.packing import Budget, collate_line, pack_lines, share_totals
from fac_lightning.types import SpeechTextBatch

__all__ = ["FixedLines", "LineStream", "PackedStream", "ResumingLoader", "shard_lines", "stream_rows"]

T_ = TypeVar("T_")


def stream_rows(corpus: Corpus, budget: Budget, seed: int, shard: int = 0, num_shards: int = 1) -> Iterator[Row]:
    """Rows without end, every epoch in a new order; shards never share a row of the same epoch.

    Dialogues that serve no mode or fit no line are left out; ``SpeechChatDataModule`` counts them beforehand. A
    schedule of modes goes by a row's place in the endless sequence, so that it is the same for any number of shards.
    """
    size = len(corpus)
    for epoch in count():
        order = np.random.default_rng([seed, epoch]).permutation(size)
        # Shards take turns over the endless sequence, so that each gets rows even when there are few dialogues.
        for place in range((shard - epoch * size) % num_shards, size, num_shards):
            row = corpus.row(int(order[place]), seed, epoch, place / size)
            if row is not None and budget.fits(row):
                yield row


class PackedStream(IterableDataset, ABC):
    """Packed lines without end, ``window`` at a time: the micro-batches of one optimizer step.

    Args:
        budget: Of a line.
        window: Lines per optimizer step.
        look_ahead: Lines kept open while packing.
        shard: Rank of this process.
        num_shards: Processes.
        skip: Windows to leave out, counted over all workers: where an interrupted run goes on.
    """

    def __init__(
        self, budget: Budget, window: int = 1, look_ahead: int = 64, shard: int = 0, num_shards: int = 1, skip: int = 0
    ) -> None:
        super().__init__()
        self.budget, self.window, self.look_ahead = budget, window, look_ahead
        self.shard, self.num_shards, self.skip = shard, num_shards, skip

    @abstractmethod
    def rows(self, shard: int, num_shards: int) -> Iterator[Any]:
        """What is packed, without end; shards share nothing of an epoch."""

    @abstractmethod
    def collate(self, rows: list[Any]) -> Any:
        """A batch of the rows of one line."""

    @abstractmethod
    def share(self, batches: list[Any]) -> list[Any]:
        """The batches of one optimizer step, told how much is in all of them."""

    def __iter__(self) -> Iterator[list[Any]]:
        worker: Any = get_worker_info()
        workers = worker.num_workers if worker else 1
        # Window w belongs to worker w % workers; after a skip the loader still asks worker 0 first.
        number = ((worker.id if worker else 0) + self.skip) % workers
        skipped = (self.skip - number + workers - 1) // workers
        rows = self.rows(self.shard * workers + number, self.num_shards * workers)
        lines = pack_lines(rows, self.budget, self.look_ahead)
        lines = islice(lines, skipped * self.window, None)
        while True:
            yield self.share([self.collate(line) for line in islice(lines, self.window)])


class LineStream(PackedStream):
    """Packed dialogues without end.

    Args:
        corpus: Where rows come from.
        budget: Of a line.
        seed: Order of rows and draw of modes.
        window: Lines per optimizer step.
        look_ahead: Lines kept open while packing.
        shard: Rank of this process.
        num_shards: Processes.
        skip: Windows to leave out, counted over all workers: where an interrupted run goes on.
    """

    def __init__(
        self,
        corpus: Corpus,
        budget: Budget,
        seed: int,
        window: int = 1,
        look_ahead: int = 64,
        shard: int = 0,
        num_shards: int = 1,
        skip: int = 0,
    ) -> None:
        super().__init__(budget, window, look_ahead, shard, num_shards, skip)
        self.corpus, self.seed = corpus, seed

    def rows(self, shard: int, num_shards: int) -> Iterator[Row]:
        """Shuffled dialogues, laid out."""
        return stream_rows(self.corpus, self.budget, self.seed, shard, num_shards)

    def collate(self, rows: list[Row]) -> SpeechTextBatch:
        """One packed line."""
        return collate_line(
            rows, self.budget.positions, self.corpus.geometry.sample_rate if self.corpus.geometry else 0
        )

    def share(self, batches: list[SpeechTextBatch]) -> list[SpeechTextBatch]:
        """Lines with the labelled tokens of all of them as their totals."""
        return share_totals(batches)


class ResumingLoader:
    """Lines of an endless stream; each new iteration goes on behind the last line that ``module`` trained on.

    Args:
        module: The data module; its trainer counts the lines.
        make_stream: Stream of ``(window, shard, num_shards, skip)``.
        num_workers: Processes that lay out and pack; 0 does it in this one.
    """

    def __init__(
        self, module: Any, make_stream: Callable[[int, int, int, int], PackedStream], num_workers: int = 0
    ) -> None:
        self.module, self.make_stream, self.num_workers = module, make_stream, num_workers

    def __iter__(self) -> Iterator[Any]:
        trainer = self.module.trainer
        window = trainer.accumulate_grad_batches if trainer is not None else 1
        # Lightning restores this count from a checkpoint before it asks for an iterator.
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total if trainer is not None else None
        done = progress.processed if progress is not None else 0
        shard, shards = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        stream = self.make_stream(window, shard, shards, done // window)
        first = done % window
        for lines in DataLoader(stream, batch_size=None, num_workers=self.num_workers):
            yield from lines[first:]
            first = 0


class FixedLines:
    """One pass over a corpus in fixed order, packed once; every process gets the same number of lines.

    Modes have the weights that their schedule ends with.

    Args:
        corpus: Where rows come from.
        budget: Of a line.
        seed: Draw of modes.
        look_ahead: Lines kept open while packing.
        max_lines: Keep the first lines only.
        shard: Rank of this process.
        num_shards: Processes. The first lines stand in again where the number of lines is no multiple of it.
    """

    def __init__(
        self,
        corpus: Corpus,
        budget: Budget,
        seed: int,
        look_ahead: int = 64,
        max_lines: int | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        found = (corpus.row(i, seed, 0, math.inf) for i in range(len(corpus)))
        rows = (row for row in found if row is not None and budget.fits(row))
        lines: Sequence[list[Row]] = list(islice(pack_lines(rows, budget, look_ahead), max_lines))
        self.lines = shard_lines(lines, shard, num_shards)
        self.budget, self.sample_rate = budget, corpus.geometry.sample_rate if corpus.geometry else 0

    def __len__(self) -> int:
        """Lines of this process."""
        return len(self.lines)

    def __iter__(self) -> Iterator[SpeechTextBatch]:
        return (collate_line(line, self.budget.positions, self.sample_rate) for line in self.lines)


def shard_lines(lines: Sequence[T_], shard: int, num_shards: int) -> list[T_]:
    """The lines of one process; the first stand in again so that every process gets as many."""
    each = -(-len(lines) // num_shards)
    return [lines[i % len(lines)] for i in range(shard, each * num_shards, num_shards)]
