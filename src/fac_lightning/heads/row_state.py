"""State of a head whose replies begin and end while others run on."""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.heads.transformer import KeyValueCache
from fac_lightning.slot_cache import SlotCache

__all__ = ["NoRowState", "RowState"]


class RowState:
    """What ``SpeechHead.new_slots`` gives: rows in use are the first ones, and ``step`` goes over all of them."""

    caches: tuple[KeyValueCache | SlotCache, ...]  # of slots where rows come and go
    previous: Tensor  # (R, ...) int64, what each row said last
    bos: int  # what stands before a row's first code

    def join(self) -> int:
        """Begin a reply, behind the others; gives its row."""
        for cache in self.caches:
            assert isinstance(cache, SlotCache), "rows of this state begin and end together"
            cache.join()
        fresh = self.previous.new_full((1, *self.previous.shape[1:]), self.bos)
        self.previous = torch.cat([self.previous, fresh])
        return len(self.previous) - 1

    def leave(self, row: int) -> None:
        """End a reply; the last row takes its place."""
        for cache in self.caches:
            assert isinstance(cache, SlotCache), "rows of this state begin and end together"
            cache.leave(row)
        kept = self.previous[:-1].clone()
        kept[row : row + 1] = self.previous[-1:][: len(kept) - row]
        self.previous = kept


class NoRowState:
    """Of a head that remembers nothing; rows are counted, and that is all."""

    def __init__(self) -> None:
        self.rows = 0

    def join(self) -> int:
        """Begin a reply; gives its row."""
        self.rows += 1
        return self.rows - 1

    def leave(self, row: int) -> None:
        """End a reply; the last row takes its place."""
        self.rows -= 1
