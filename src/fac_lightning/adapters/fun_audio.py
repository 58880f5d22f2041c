"""Groups of codes -> backbone positions as the released Fun-Audio-Chat does it.

Legend: C groups, k frames per group (``group_size``), V rows of the table, D backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.adapters.base import CodeAdapter
from fac_lightning.types import code_rows

__all__ = ["FunAudioCodeGrouping"]


class FunAudioCodeGrouping(CodeAdapter):
    """Average the table rows of a group's codes and project the mean without bias.

    The table is the one that :class:`fac_lightning.heads.FunAudioHead` says codes with. A pad code has a row like any
    other: it counts in the mean, but the mean does not train it (``audio_tower`` of the released model).

    Args:
        codebook_size: Codes, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone and of the table.
        table_rows: Rows of the table, V; ``codebook_size + 3`` when None.
        bos_row: Row of ``bos``; behind the codes when None.
        eos_row: Row of ``eos``; behind ``bos`` when None.
        pad_row: Row of ``pad``; behind ``eos`` when None.
    """

    rows: Tensor
    num_codebooks = 1

    def __init__(
        self,
        codebook_size: int,
        group_size: int,
        dim: int,
        table_rows: int | None = None,
        bos_row: int | None = None,
        eos_row: int | None = None,
        pad_row: int | None = None,
    ) -> None:
        super().__init__()
        if min(codebook_size, group_size, dim) < 1:
            raise ValueError(
                f"codebook_size, group_size and dim must be at least 1, got {codebook_size}, {group_size} and {dim}"
            )
        self.codebook_size, self.group_size, self.dim = codebook_size, group_size, dim
        rows = code_rows(codebook_size, table_rows, bos_row, eos_row, pad_row)
        self.register_buffer("rows", rows, persistent=False)
        self.pad_row = int(rows[-1])
        self.table = nn.Parameter(torch.empty(table_rows or codebook_size + 3, dim))
        self.proj = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.table, std=0.02)

    @property
    def code_table(self) -> nn.Parameter:
        """The table ``(V, dim)``."""
        return self.table

    @property
    def composed_places(self) -> int:
        """All frames are projected alike."""
        return 1

    def composed_tables(self) -> tuple[Tensor, Tensor | None]:
        """The rows of codes multiplied with the projection, over k ``(1, 1, V, D)``."""
        return (self.proj(self.table[self.rows]) / self.group_size)[None, None], None

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, 1)``."""
        return self.embed_rows(self.rows[codes[..., 0]])

    def embed_rows(self, rows: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of groups ``(..., group_size)`` that are given as rows of the table."""
        embeds = F.embedding(rows, self.table, padding_idx=self.pad_row)
        projected: Tensor = self.proj(embeds.mean(-2))
        return projected
