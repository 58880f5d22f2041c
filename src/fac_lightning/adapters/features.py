"""Frames of continuous features -> backbone positions.

Legend: B clips, T frames.
"""

from __future__ import annotations

from torch import Tensor, nn

from fac_lightning.adapters.grouping import Grouping
from fac_lightning.types import SpeechFeatures

__all__ = ["ConcatGrouping", "MeanGrouping"]


class ConcatGrouping(Grouping):
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


class MeanGrouping(Grouping):
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
