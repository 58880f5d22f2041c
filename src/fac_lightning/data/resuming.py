"""The training loader: windows planned here, laid out by workers, given line by line from where a run stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from fac_lightning.data.stream import PackedStream, StreamPlace
from fac_lightning.data.stream_progress import StreamProgress
from fac_lightning.data.stream_tally import StreamTally

__all__ = ["ResumingLoader", "rewind"]


class ResumingLoader:
    """Lines of an endless stream; each new iteration goes on behind the last window that ``module`` trained on.

    Args:
        module: The data module; its trainer counts the lines.
        make_stream: Stream of ``(window, shard, num_shards, start)``.
        progress: Knows the place behind the lines that were trained on.
        tally: Counts what is given.
        num_workers: Processes that lay out and read; 0 does it in this one. The lines are the same.
    """

    def __init__(
        self,
        module: Any,
        make_stream: Callable[[int, int, int, StreamPlace], PackedStream],
        progress: StreamProgress,
        tally: StreamTally,
        num_workers: int = 0,
    ) -> None:
        self.module, self.make_stream, self.num_workers = module, make_stream, num_workers
        self.progress, self.tally = progress, tally

    def __iter__(self) -> Iterator[Any]:
        trainer = self.module.trainer
        window = trainer.accumulate_grad_batches if trainer is not None else 1
        shard, shards = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        # Lightning restores its count from a checkpoint before it asks for an iterator.
        done = rewind(trainer) if trainer is not None else 0
        stream = self.make_stream(window, shard, shards, self.progress.begin(done, window))
        windows: Any = self.progress.follow(stream.windows())
        for lines in DataLoader(stream, batch_size=None, sampler=windows, num_workers=self.num_workers):
            for line in lines:
                self.tally.add(getattr(line, "line", line))
            yield from lines


def rewind(trainer: Any) -> int:
    """Batches that a trainer is done with; where it goes on from the midst of an optimizer step, that step begins anew.

    The gradients of its first lines are in no checkpoint, so they are trained on again: the step then is what it would
    have been.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    extra: int = progress.total.processed % trainer.accumulate_grad_batches
    if extra and trainer.fit_loop.restarting:
        for counted in (progress.total, progress.current):
            done = max(0, counted.processed - extra)
            counted.ready = counted.started = counted.processed = counted.completed = done
    return int(progress.total.processed)
