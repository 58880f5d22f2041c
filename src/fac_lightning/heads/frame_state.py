"""State of heads that are shown whole frames of what was said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.row_state import RowState
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache
from fac_lightning.slot_cache import SlotCache

__all__ = ["FrameState"]


@dataclass
class FrameState(RowState):
    """State of a generation; moves on with every step."""

    caches: tuple[KeyValueCache | SlotCache, ...]  # keys and values of the reply so far, one for each transformer
    previous: Tensor  # (B, Q) int64, last frame said
    bos: int

    @classmethod
    def fresh(cls, batch_size: int, transformers: Iterable[CausalTransformer], table: CodeTable) -> FrameState:
        """State of ``batch_size`` fresh replies."""
        bos = torch.full((batch_size, table.num_codebooks), table.bos, device=table.weight.device)
        return cls(tuple(KeyValueCache(len(t.blocks), batch_size) for t in transformers), bos, table.bos)

    @classmethod
    def of_slots(cls, num_slots: int, transformers: Iterable[CausalTransformer], table: CodeTable) -> FrameState:
        """State of replies that come and go, none so far."""
        before = torch.zeros(0, table.num_codebooks, dtype=torch.int64, device=table.weight.device)
        return cls(tuple(SlotCache(num_slots, 128, before.device) for _ in transformers), before, table.bos)
