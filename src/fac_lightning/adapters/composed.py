"""Embedding and projection of codes as tables that are projected already.

A projection of concatenated, summed or averaged embeddings is a sum of projected embeddings. For inference the rows can
be projected once: a group is then k x Q lookups and a sum, and nothing is multiplied.

Legend: C groups, k frames per group, P places of a group with a table of their own (k, or 1 for all), Q codebooks,
V code ids, D backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ComposedCodes"]


class ComposedCodes(nn.Module):
    """Sums rows of tables; what ``CodeAdapter.compose`` gives. It follows no weight that changes later.

    Args:
        tables: ``(P, Q, V, D)``.
        bias: ``(D,)`` of the projection.
    """

    tables: Tensor
    bias: Tensor | None

    def __init__(self, tables: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("tables", tables.contiguous(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @property
    def num_bytes(self) -> int:
        """Memory of the tables."""
        return self.tables.numel() * self.tables.element_size()

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, D)`` of groups ``(C, k, Q)``."""
        places, books, ids, dim = self.tables.shape
        place = torch.arange(codes.shape[1], device=codes.device)[:, None] % places  # (k, 1)
        book = torch.arange(books, device=codes.device)  # (Q,)
        rows = (place * books + book) * ids + codes  # (C, k, Q)
        embeds = nn.functional.embedding(rows.flatten(1), self.tables.view(-1, dim)).sum(1)
        return embeds if self.bias is None else embeds + self.bias
