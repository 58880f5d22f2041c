"""Clips that begin a few frames late, so that groups fall differently every time a model is trained on them.

Legend: B clips, T frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Jitter", "start_late"]


class Jitter(nn.Module):
    """In training, leave out up to ``most`` frames at the beginning of a batch's clips; one number for all of them.

    Args:
        most: Frames; 0 leaves clips as they are.
        group_size: Frames per position; ``most`` must be less.
    """

    def __init__(self, most: int, group_size: int) -> None:
        super().__init__()
        if not 0 <= most < group_size:
            raise ValueError(f"jitter must lie between 0 and group_size - 1 ({group_size - 1}), got {most}")
        self.most = most

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames ``(B, T, D)`` of as many frames as before; ``lengths`` ``(B,)`` hold for both."""
        if not (self.training and self.most and frames.numel()):
            return frames
        return start_late(frames, lengths, int(torch.randint(self.most + 1, ())))


def start_late(frames: Tensor, lengths: Tensor, late: int) -> Tensor:
    """Clips ``(B, T, D)`` without their first ``late`` frames; the last frame is repeated, so that lengths stay."""
    steps = torch.arange(frames.shape[1], device=frames.device) + late
    last = (lengths.to(frames.device) - 1).clamp_min(0)
    return frames.gather(1, torch.minimum(steps, last[:, None])[..., None].expand_as(frames))
