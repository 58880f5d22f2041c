"""What groupings of features share: cutting frames into groups.

Legend: B clips, T frames, P positions (``ceil(T / group_size)``), k frames per group, G groups that hold a frame,
D width.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from fac_lightning.adapters.base import FeatureAdapter
from fac_lightning.types import SpeechFeatures

__all__ = ["Grouping", "PooledGrouping"]


class Grouping(FeatureAdapter):
    """A grouping of features with its sizes.

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int) -> None:
        super().__init__()
        if min(in_dim, group_size, dim) < 1:
            raise ValueError(f"in_dim, group_size and dim must be at least 1, got {in_dim}, {group_size} and {dim}")
        self.in_dim, self.group_size, self.dim = in_dim, group_size, dim

    def _groups(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Groups ``(B, P, k, in_dim)`` zero after each length, frames kept per group ``(B, P)``, positions ``(B,)``."""
        frames = features.shape[1]
        keep = torch.arange(frames, device=features.device) < lengths[:, None]  # (B, T)
        extra = -frames % self.group_size
        features = F.pad(features.masked_fill(~keep[..., None], 0), (0, 0, 0, extra))
        counts = F.pad(keep, (0, extra)).unflatten(1, (-1, self.group_size)).sum(-1)
        return features.unflatten(1, (-1, self.group_size)), counts, -(-lengths // self.group_size)

    def _untouched(self) -> Tensor:
        """Zero ``()`` that depends on every parameter: they have a gradient also where nothing was heard."""
        return torch.stack([parameter.flatten()[0] * 0 for parameter in self.parameters()]).sum()

    def _finish(self, positions: Tensor, counts: Tensor, lengths: Tensor) -> SpeechFeatures:
        return SpeechFeatures(features=positions.masked_fill((counts == 0)[..., None], 0), lengths=lengths)


class PooledGrouping(Grouping):
    """A grouping whose groups are dear: only those that hold a frame are computed, all of a batch as one."""

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        groups, counts, positions = self._groups(features, lengths)
        there = counts > 0  # (B, P)
        mask = torch.arange(self.group_size, device=groups.device) < counts[there][:, None]  # (G, k)
        pooled = self.pool(groups[there], mask)
        out = pooled.new_zeros(*there.shape, self.dim).masked_scatter(there[..., None], pooled)
        return SpeechFeatures(out, positions)

    @abstractmethod
    def pool(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Positions ``(G, dim)`` of groups ``(G, k, in_dim)``; ``mask`` ``(G, k)`` is True where a frame is."""
