"""A bidirectional transformer inside every group of frames.

Legend: G groups, k frames per group, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters.codes import CodeGrouping
from fac_lightning.adapters.grouping import PooledGrouping

__all__ = ["PatchTransformer", "TransformerCodeGrouping", "TransformerGrouping"]


class PatchTransformer(nn.Module):
    """Frames of a group look at each other, with learned places; then they are concatenated and projected.

    Args:
        group_size: Frames per group, k.
        width: Of a frame, W.
        dim: Width of the result.
        num_layers: Pre-norm blocks.
        num_heads: Attention heads; divides ``width``.
        ffn_dim: Width inside the feed-forward; four times ``width`` when None.
    """

    blocks: Sequence[_Block]

    def __init__(
        self, group_size: int, width: int, dim: int, num_layers: int, num_heads: int, ffn_dim: int | None
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or width % num_heads:
            raise ValueError(
                f"num_layers ({num_layers}) must be at least 1, and num_heads ({num_heads}) must divide the width of a "
                f"frame ({width})"
            )
        self.places = nn.Parameter(torch.randn(group_size, width) * 0.02)
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            [_Block(width, num_heads, ffn_dim or 4 * width) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(group_size * width, dim)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Results ``(G, dim)`` of groups ``(G, k, W)``; frames where ``mask`` ``(G, k)`` is False are not there."""
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        seen = (mask[:, None] | itself)[:, None]  # (G, 1, k, k); a frame that is not there must see something
        hidden = frames + self.places.to(frames.dtype)
        for block in self.blocks:
            hidden = block(hidden, seen)
        hidden = self.norm(hidden).masked_fill(~mask[..., None], 0)
        projected: Tensor = self.proj(hidden.flatten(1))
        return projected


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.reduce = nn.Linear(width, ffn_dim), nn.Linear(ffn_dim, width)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Frames ``(G, k, W)``; ``seen`` ``(G, 1, k, k)`` is True where a query sees a key."""
        heads = self.qkv(self.attention_norm(hidden)).unflatten(-1, (3, self.num_heads, -1))  # (G, k, 3, H, W / H)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (G, H, k, W / H)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = hidden + self.reduce(F.gelu(self.expand(self.ffn_norm(hidden))))
        return changed


class TransformerGrouping(PooledGrouping):
    """Fold frames with a :class:`PatchTransformer`, the patch encoder of MiMo-Audio for continuous features.

    A position sees its own group alone, both ways. https://arxiv.org/abs/2512.23808

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
        width: Width inside; ``in_dim`` when None. Frames are projected to it.
        num_layers: Blocks.
        num_heads: Attention heads; divides ``width``.
        ffn_dim: Width inside the feed-forward; four times ``width`` when None.
    """

    def __init__(
        self,
        in_dim: int,
        group_size: int,
        dim: int,
        width: int | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_dim: int | None = None,
    ) -> None:
        super().__init__(in_dim, group_size, dim)
        width = in_dim if width is None else width
        self.inner = nn.Linear(in_dim, width)
        self.patch = PatchTransformer(group_size, width, dim, num_layers, num_heads, ffn_dim)

    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Positions ``(G, dim)`` of groups ``(G, k, in_dim)``; ``mask`` ``(G, k)`` is True where a frame is."""
        pooled: Tensor = self.patch(self.inner(frames), mask)
        return pooled


class TransformerCodeGrouping(CodeGrouping):
    """Fold codes with a :class:`PatchTransformer`, as the patch encoder of MiMo-Audio does.

    Codebooks of a frame are summed first; frames of pad codes alone are not there. https://arxiv.org/abs/2512.23808

    Args:
        codebook_size: Codes per codebook, special codes not counted.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        num_codebooks: Q.
        embed_dim: Width of a frame's embedding and of the transformer; ``dim`` when None.
        num_layers: Blocks.
        num_heads: Attention heads; divides ``embed_dim``.
        ffn_dim: Width inside the feed-forward; four times ``embed_dim`` when None.
    """

    def __init__(
        self,
        codebook_size: int,
        group_size: int,
        dim: int,
        num_codebooks: int = 1,
        embed_dim: int | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_dim: int | None = None,
    ) -> None:
        super().__init__(codebook_size, group_size, dim, num_codebooks, embed_dim)
        self.patch = PatchTransformer(group_size, self.embed_dim, dim, num_layers, num_heads, ffn_dim)

    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``."""
        folded: Tensor = self.patch(self.embed(codes), (codes != self.embed.pad).any(-1))
        return folded
