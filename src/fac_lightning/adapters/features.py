"""Frames of continuous features -> backbone positions.

Legend: B clips, T frames, P positions (``ceil(T / group_size)``), k frames per group, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters.base import FeatureAdapter
from fac_lightning.types import SpeechFeatures

__all__ = ["ConcatGrouping", "MeanGrouping"]


class _Grouping(FeatureAdapter):
    """What both groupings share: cutting frames into groups."""

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

    def _finish(self, positions: Tensor, counts: Tensor, lengths: Tensor) -> SpeechFeatures:
        return SpeechFeatures(features=positions.masked_fill((counts == 0)[..., None], 0), lengths=lengths)


class ConcatGrouping(_Grouping):
    """Concatenate the frames of a group and project them, equation 1 of the report for continuous features.

    A group that is not full is filled with zeros. https://arxiv.org/abs/2512.20156

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int) -> None:
        super().__init__(in_dim, group_size, dim)
        self.proj = nn.Linear(group_size * in_dim, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        groups, counts, positions = self._groups(features, lengths)
        return self._finish(self.proj(groups.flatten(2)), counts, positions)


class MeanGrouping(_Grouping):
    """Average the frames of a group and project the mean without bias, as the released Fun-Audio-Chat does.

    The sum of a group's frames is divided by ``group_size``, also where the last group of a clip is not full.

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int) -> None:
        super().__init__(in_dim, group_size, dim)
        self.proj = nn.Linear(in_dim, dim, bias=False)

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        groups, counts, positions = self._groups(features, lengths)
        return self._finish(self.proj(groups.mean(2)), counts, positions)
