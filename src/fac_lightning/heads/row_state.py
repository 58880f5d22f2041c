"""State of a head whose replies begin and end while others run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.heads.transformer import KeyValueCache
from fac_lightning.slot_cache import CachedRow, SlotCache

__all__ = ["NoRowState", "RowState", "SeenRow"]


@dataclass(frozen=True, eq=False)
class SeenRow:
    """What a row has seen and said, taken out; it may be put back more than once."""

    caches: tuple[CachedRow, ...]
    previous: Tensor  # (1, ...) int64, what it said last


class RowState:
    """What ``SpeechHead.new_slots`` gives: rows in use are the first ones, and ``step`` goes over all of them."""

    caches: tuple[KeyValueCache | SlotCache, ...]  # of slots where rows come and go
    previous: Tensor  # (R, ...) int64, what each row said last
    bos: int  # what stands before a row's first code

    def join(self, seen: SeenRow | None = None) -> int:
        """Begin a reply, behind the others and behind what was ``seen``; gives its row."""
        kept = [None] * len(self.caches) if seen is None else seen.caches
        for cache, part in zip(self.caches, kept, strict=True):
            assert isinstance(cache, SlotCache), "rows of this state begin and end together"
            cache.join(part)
        last = self.previous.new_full((1, *self.previous.shape[1:]), self.bos) if seen is None else seen.previous
        self.previous = torch.cat([self.previous, last])
        return len(self.previous) - 1

    def copied(self, row: int) -> SeenRow:
        """What a row has seen and said."""
        return SeenRow(tuple(cache.copied(row) for cache in self.slots), self.previous[row : row + 1].clone())

    def leave(self, row: int) -> None:
        """End a reply; the last row takes its place."""
        for cache in self.caches:
            assert isinstance(cache, SlotCache), "rows of this state begin and end together"
            cache.leave(row)
        kept = self.previous[:-1].clone()
        kept[row : row + 1] = self.previous[-1:][: len(kept) - row]
        self.previous = kept

    @property
    def slots(self) -> tuple[SlotCache, ...]:
        """The caches of rows that come and go."""
        return tuple(cache for cache in self.caches if isinstance(cache, SlotCache))

    @contextmanager
    def fixed_at(self, previous: Tensor, places: Sequence[Tensor]) -> Iterator[None]:
        """Inside, ``step`` goes over all slots, which said ``previous`` ``(S, ...)`` last, with fixed shapes.

        ``places`` ``(S, 1)`` of each cache are where they are. See ``SlotCache.fixed_at``. Afterwards ``previous`` is
        what was given, and ``advance`` counts the rows in use again.
        """
        self.previous = previous
        try:
            with ExitStack() as stack:
                for cache, positions in zip(self.slots, places, strict=True):
                    stack.enter_context(cache.fixed_at(positions))
                yield
        finally:
            self.previous = previous

    def advance(self, previous: Tensor) -> None:
        """Count a fixed step, behind which rows in use said ``previous`` ``(R, ...)`` last."""
        for cache in self.slots:
            cache.advance()
        self.previous = previous


class NoRowState:
    """Of a head that remembers nothing; rows are counted, and that is all."""

    slots: tuple[SlotCache, ...] = ()
    previous = torch.empty(0, 0, dtype=torch.int64)

    def __init__(self) -> None:
        self.rows = 0

    def join(self) -> int:
        """Begin a reply; gives its row."""
        self.rows += 1
        return self.rows - 1

    def leave(self, row: int) -> None:
        """End a reply; the last row takes its place."""
        self.rows -= 1

    @contextmanager
    def fixed_at(self, previous: Tensor, places: Sequence[Tensor]) -> Iterator[None]:
        """Nothing changes: shapes are those of what ``step`` is given."""
        yield

    def advance(self, previous: Tensor) -> None:
        """Nothing to count."""
