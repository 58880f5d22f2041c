"""Learned queries look at the frames of a group.

Legend: G groups, k frames per group, W width, H heads, M queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters.codes import CodeGrouping
from fac_lightning.adapters.grouping import PooledGrouping

__all__ = ["AttentionCodeGrouping", "AttentionGrouping", "AttentionPool"]


class AttentionPool(nn.Module):
    """Attend with learned queries over the frames of a group, then concatenate and project what each query found.

    Args:
        group_size: Frames per group, k.
        in_dim: Width of a frame.
        dim: Width of the result, and of keys and values together, W.
        num_queries: Queries per group, M.
        num_heads: Attention heads; divides ``dim``.
    """

    def __init__(self, group_size: int, in_dim: int, dim: int, num_queries: int, num_heads: int) -> None:
        super().__init__()
        if num_queries < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"num_queries ({num_queries}) must be at least 1, and num_heads ({num_heads}) must divide dim ({dim})"
            )
        self.num_heads = num_heads
        self.places = nn.Parameter(torch.randn(group_size, in_dim) * 0.02)
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.norm = nn.LayerNorm(in_dim)
        self.key_value = nn.Linear(in_dim, 2 * dim)
        self.proj = nn.Linear(num_queries * dim, dim)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Results ``(G, dim)`` of groups ``(G, k, in_dim)``; frames where ``mask`` ``(G, k)`` is False are not seen.

        Of a group without any frame all ``k`` are seen.
        """
        mask = mask | ~mask.any(-1, keepdim=True)
        pairs = self.key_value(self.norm(frames) + self.places.to(frames.dtype)).unflatten(-1, (2, self.num_heads, -1))
        key, value = pairs.permute(2, 0, 3, 1, 4)  # each (G, H, k, W / H)
        query = self.queries.to(key.dtype).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (H, M, W / H)
        found = F.scaled_dot_product_attention(
            query.expand(len(key), -1, -1, -1), key, value, attn_mask=mask[:, None, None]
        )
        projected: Tensor = self.proj(found.transpose(1, 2).flatten(1))  # (G, M * W) -> (G, dim)
        return projected


class AttentionGrouping(PooledGrouping):
    """Fold frames with an :class:`AttentionPool`: a Q-Former of one layer whose window is the group.

    Compare the window-level Q-Former of SALMONN (https://arxiv.org/abs/2310.13289).

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
        num_queries: Learned queries per group; what they find is concatenated.
        num_heads: Attention heads; divides ``dim``.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int, num_queries: int = 1, num_heads: int = 4) -> None:
        super().__init__(in_dim, group_size, dim)
        self.attend = AttentionPool(group_size, in_dim, dim, num_queries, num_heads)

    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Positions ``(G, dim)`` of groups ``(G, k, in_dim)``; ``mask`` ``(G, k)`` is True where a frame is."""
        pooled: Tensor = self.attend(frames, mask)
        return pooled


class AttentionCodeGrouping(CodeGrouping):
    """Fold codes with an :class:`AttentionPool`; frames of pad codes alone are not seen.

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        num_codebooks: Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
        num_queries: Learned queries per group; what they find is concatenated.
        num_heads: Attention heads; divides ``dim``.
    """

    def __init__(
        self,
        codebook_size: int,
        group_size: int,
        dim: int,
        num_codebooks: int = 1,
        embed_dim: int | None = None,
        num_queries: int = 1,
        num_heads: int = 4,
    ) -> None:
        super().__init__(codebook_size, group_size, dim, num_codebooks, embed_dim)
        self.attend = AttentionPool(group_size, self.embed_dim, dim, num_queries, num_heads)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``."""
        folded: Tensor = self.attend(self.embed(codes), (codes != self.embed.pad).any(-1))
        return folded
