"""State of heads that are shown whole frames of what was said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache

__all__ = ["FrameState"]


@dataclass
class FrameState:
    """State of a generation; moves on with every step."""

    caches: tuple[KeyValueCache, ...]  # keys and values of the reply so far, one for each transformer
    previous: Tensor  # (B, Q) int64, last frame said

    @classmethod
    def fresh(cls, batch_size: int, transformers: Iterable[CausalTransformer], table: CodeTable) -> FrameState:
        """State of ``batch_size`` fresh replies."""
        bos = torch.full((batch_size, table.num_codebooks), table.bos, device=table.weight.device)
        return cls(tuple(KeyValueCache(len(t.blocks), batch_size) for t in transformers), bos)
