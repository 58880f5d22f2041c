"""A part for fac_lightning: frames of user speech are grouped by the greatest value of each channel."""

import torch
from torch import Tensor, nn

from fac_lightning.adapters import FeatureAdapter
from fac_lightning.types import SpeechFeatures

__all__ = ["MaxGrouping"]


class MaxGrouping(FeatureAdapter):
    """Take the greatest value of each channel in a group of frames, and project what was taken.

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int) -> None:
        super().__init__()
        self.in_dim, self.group_size, self.dim = in_dim, group_size, dim
        self.proj = nn.Linear(in_dim, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        after = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]  # (B, T)
        frames = features.masked_fill(after[..., None], -torch.inf)
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % self.group_size), value=-torch.inf)
        greatest = frames.unflatten(1, (-1, self.group_size)).amax(2)  # (B, positions, in_dim)
        empty = greatest[..., :1] == -torch.inf  # groups after the end of a clip
        positions = self.proj(greatest.masked_fill(empty, 0)).masked_fill(empty, 0)
        return SpeechFeatures(positions, -(-lengths // self.group_size))
