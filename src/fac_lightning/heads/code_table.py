"""Embeddings of codes that were said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fac_lightning.types import bos_code, code_vocab_size, pad_code

__all__ = ["CodeTable"]


class CodeTable(nn.Embedding):
    """A table for each codebook, with rows for the special codes; ``pad`` embeds to zero.

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Tables, Q.
        width: Width W of an embedding.
    """

    def __init__(self, codebook_size: int, num_codebooks: int, width: int) -> None:
        super().__init__(num_codebooks * code_vocab_size(codebook_size), width)
        self.num_codebooks, self.rows = num_codebooks, code_vocab_size(codebook_size)
        self.bos, self.pad = bos_code(codebook_size), pad_code(codebook_size)

    def forward(self, codes: Tensor, codebooks: Tensor | int = 0) -> Tensor:
        """Embeddings ``(..., W)`` of codes ``(...)`` of ``codebooks``, one for all or of a shape that broadcasts."""
        embeds = super().forward(codes + self.rows * codebooks)
        return embeds.masked_fill((codes == self.pad)[..., None], 0)

    def frames(self, codes: Tensor) -> Tensor:
        """Summed embeddings ``(..., W)`` of frames ``(..., Q)``."""
        embeds: Tensor = self(codes, torch.arange(self.num_codebooks, device=codes.device))  # (..., Q, W)
        return embeds.sum(-2)
