"""Frames of continuous features -> backbone positions by a strided convolution.

Legend: B clips, T frames, P positions (``ceil(T / group_size)``), k frames per group, K frames of the kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters.base import FrameStream
from fac_lightning.adapters.grouping import Grouping
from fac_lightning.types import SpeechFeatures

__all__ = ["ConvGrouping"]


class ConvGrouping(Grouping):
    """A convolution with stride ``group_size``, GELU, and a linear layer.

    The kernel ends with the last frame of the position's group; what it is longer than a group reaches into the past,
    so that neighbours overlap and nothing of the future is needed. A clip begins after frames of zero, and a last group
    that is not full is filled with zeros.

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position, k.
        dim: Width of the backbone.
        kernel_size: Frames that a position sees, K, at least ``group_size``; twice as many when None.
    """

    def __init__(self, in_dim: int, group_size: int, dim: int, kernel_size: int | None = None) -> None:
        super().__init__(in_dim, group_size, dim)
        kernel_size = 2 * group_size if kernel_size is None else kernel_size
        if kernel_size < group_size:
            raise ValueError(
                f"kernel_size ({kernel_size}) is less than group_size ({group_size}), so some frames would never be "
                f"seen; set it to {group_size} or more"
            )
        self.context = "group" if kernel_size == group_size else "past"
        self.reach = kernel_size - group_size  # frames before the group
        self.conv = nn.Conv1d(in_dim, dim, kernel_size, stride=group_size)
        self.proj = nn.Linear(dim, dim)

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        groups, counts, positions = self._groups(features, lengths)
        convolved = self._convolve(F.pad(groups.flatten(1, 2), (0, 0, self.reach, 0)))
        return self._finish(convolved, counts, positions)

    def new_state(self, batch_size: int) -> FrameStream:
        """Before its first frame a clip is zero."""
        return FrameStream(self.conv.weight.new_zeros(batch_size, self.reach, self.in_dim))

    def step(self, features: Tensor, state: FrameStream) -> SpeechFeatures:
        """Positions ``(B, P, dim)`` that the next frames ``(B, t, in_dim)`` complete; ``state`` moves on."""
        frames = torch.cat([state.frames, features], dim=1)
        whole = (frames.shape[1] - self.reach) // self.group_size * self.group_size
        state.frames = frames[:, whole:]
        return self._all(frames[:, : self.reach + whole])

    def finish(self, state: FrameStream) -> SpeechFeatures:
        """The position of the frames that still wait, if there are any: the clips end here."""
        waiting = state.frames.shape[1] - self.reach
        return self._all(F.pad(state.frames, (0, 0, 0, -waiting % self.group_size)))

    def _all(self, frames: Tensor) -> SpeechFeatures:
        positions = self._convolve(frames)
        lengths = torch.full((len(positions),), positions.shape[1], device=frames.device)
        return SpeechFeatures(positions, lengths)

    def _convolve(self, frames: Tensor) -> Tensor:
        """Positions ``(B, P, dim)`` of frames ``(B, K - k + P * k, in_dim)``."""
        if frames.shape[1] == self.reach:  # no group: shorter than the kernel
            return self.proj.weight.new_zeros(len(frames), 0, self.dim) + self._untouched()
        hidden = F.gelu(self.conv(frames.transpose(1, 2))).transpose(1, 2)
        positions: Tensor = self.proj(hidden)
        return positions
