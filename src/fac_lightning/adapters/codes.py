"""Groups of codes -> backbone positions.

Legend: C groups, k frames per group (``group_size``), Q codebooks, E width of a code embedding, D backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fac_lightning.adapters.base import CodeAdapter
from fac_lightning.types import code_vocab_size, pad_code

__all__ = ["CodeEmbedding", "CodeGrouping", "ConcatCodeGrouping", "MeanCodeGrouping"]


class CodeEmbedding(nn.Module):
    """One embedding table per codebook, summed over codebooks; pad codes embed to zero.

    Args:
        codebook_size: Codes per codebook; bos, eos and pad rows are added.
        num_codebooks: Tables.
        dim: Width of an embedding.
    """

    offsets: Tensor

    def __init__(self, codebook_size: int, num_codebooks: int, dim: int) -> None:
        super().__init__()
        self.pad, rows = pad_code(codebook_size), code_vocab_size(codebook_size)
        self.table = nn.Embedding(rows * num_codebooks, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.register_buffer("offsets", rows * torch.arange(num_codebooks), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of codes ``(..., Q)``."""
        embeds = self.table(codes + self.offsets)  # (..., Q, dim)
        summed: Tensor = embeds.masked_fill((codes == self.pad)[..., None], 0).sum(-2)
        return summed

    @property
    def tables(self) -> Tensor:
        """What ``forward`` sums ``(Q, V, dim)``: zero for pad codes."""
        tables: Tensor = self.table.weight.unflatten(0, (len(self.offsets), -1)).clone()
        tables[:, self.pad] = 0
        return tables


class CodeGrouping(CodeAdapter):
    """What groupings of codes share: the table and the sizes.

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        num_codebooks: Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
    """

    def __init__(
        self, codebook_size: int, group_size: int, dim: int, num_codebooks: int, embed_dim: int | None
    ) -> None:
        super().__init__()
        if min(codebook_size, group_size, dim, num_codebooks) < 1:
            raise ValueError(
                "codebook_size, group_size, dim and num_codebooks must be at least 1, got "
                f"{codebook_size}, {group_size}, {dim} and {num_codebooks}"
            )
        self.codebook_size, self.group_size, self.num_codebooks, self.dim = (
            codebook_size,
            group_size,
            num_codebooks,
            dim,
        )
        self.embed_dim = embed_dim or dim
        self.embed = CodeEmbedding(codebook_size, num_codebooks, self.embed_dim)


class ConcatCodeGrouping(CodeGrouping):
    """Concatenate the embeddings of a group's frames and project them to one position.

    ``g_i = Linear(Concat(s_ik .. s_(i+1)k-1))``, equation 1 of the Fun-Audio-Chat report
    (https://arxiv.org/abs/2512.20156). Codebooks of a frame are summed first; pad codes embed to zero.

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        num_codebooks: Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
    """

    def __init__(
        self, codebook_size: int, group_size: int, dim: int, num_codebooks: int = 1, embed_dim: int | None = None
    ) -> None:
        super().__init__(codebook_size, group_size, dim, num_codebooks, embed_dim)
        self.proj = nn.Linear(group_size * self.embed_dim, dim)

    @property
    def composed_places(self) -> int:
        """Each frame has its part of the projection."""
        return self.group_size

    def composed_tables(self) -> tuple[Tensor, Tensor | None]:
        """The tables multiplied with each frame's part ``(k, Q, V, D)``, and the bias."""
        parts = self.proj.weight.unflatten(1, (self.group_size, -1))  # (D, k, E)
        return torch.einsum("qve,dke->kqvd", self.embed.tables, parts), self.proj.bias

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``."""
        projected: Tensor = self.proj(self.embed(codes).flatten(1))  # (C, k * E) -> (C, D)
        return projected


class MeanCodeGrouping(CodeGrouping):
    """Average the embeddings of a group's frames and project the mean, as the released Fun-Audio-Chat does.

    The mean is over all ``group_size`` frames: a pad frame counts as a zero vector. No bias.

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        num_codebooks: Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
    """

    def __init__(
        self, codebook_size: int, group_size: int, dim: int, num_codebooks: int = 1, embed_dim: int | None = None
    ) -> None:
        super().__init__(codebook_size, group_size, dim, num_codebooks, embed_dim)
        self.proj = nn.Linear(self.embed_dim, dim, bias=False)

    @property
    def composed_places(self) -> int:
        """All frames are projected alike."""
        return 1

    def composed_tables(self) -> tuple[Tensor, Tensor | None]:
        """The tables multiplied with the projection, over k ``(1, Q, V, D)``."""
        return (self.proj(self.embed.tables) / self.group_size)[None], None

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``."""
        projected: Tensor = self.proj(self.embed(codes).mean(1))  # (C, E) -> (C, D)
        return projected
