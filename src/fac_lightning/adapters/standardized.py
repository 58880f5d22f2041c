"""Grouping of features whose channels differ in scale, such as those of a frozen pretrained encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fac_lightning.adapters.features import ConcatGrouping
from fac_lightning.adapters.jitter import Jitter
from fac_lightning.types import SpeechFeatures

__all__ = ["StandardizedGrouping"]


class StandardizedGrouping(ConcatGrouping):
    """Give every channel mean 0 and variance 1, then concatenate and project as :class:`ConcatGrouping` does.

    Frames of a pretrained encoder have channels with large constant offsets (in Whisper tiny.en up to 6 standard
    deviations), which leave a fresh projection badly conditioned. The statistics are those of the first ``warm_frames``
    frames seen in training, counted once and then fixed, so that a frame always maps to the same embedding afterwards.

    A model that hears little speech can be kept from learning its clips by heart, in training only: ``dropout`` blanks
    numbers of the frames, ``jitter`` lets clips begin a few frames late, so that groups fall differently every time.

    Args:
        in_dim: Width of the encoder's frames.
        group_size: Frames per position.
        dim: Width of the backbone.
        warm_frames: Frames to take the statistics from.
        dropout: Share of the standardised numbers blanked in training.
        jitter: Most frames by which a batch's clips are moved to the left in training; less than ``group_size``.
    """

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(
        self,
        in_dim: int,
        group_size: int,
        dim: int,
        warm_frames: int = 20_000,
        dropout: float = 0.0,
        jitter: int = 0,
    ) -> None:
        super().__init__(in_dim, group_size, dim)
        if warm_frames < 1:
            raise ValueError(f"warm_frames must be at least 1, got {warm_frames}")
        self.warm_frames = warm_frames
        self.jitter = Jitter(jitter, group_size)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("square", torch.ones(in_dim))  # mean of squared deviations
        self.register_buffer("count", torch.zeros(()))

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``, zero after each length."""
        if self.training and features.numel() and self.count < self.warm_frames:
            self._observe(features, lengths)
        scaled = (features - self.mean.to(features.dtype)) * self.square.clamp_min(1e-8).rsqrt().to(features.dtype)
        return super().forward(self.dropout(self.jitter(scaled, lengths)), lengths)

    @torch.no_grad()
    def _observe(self, features: Tensor, lengths: Tensor) -> None:
        """Merge the statistics of a batch into those so far (Chan et al., 1979)."""
        keep = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        frames = features[keep].float()  # (F, in_dim)
        if not len(frames):
            return
        mean, square = frames.mean(0), frames.var(0, unbiased=False)
        total = self.count + len(frames)
        share = len(frames) / total
        gap = mean - self.mean
        self.square.copy_(self.square * (1 - share) + square * share + gap.square() * share * (1 - share))
        self.mean.add_(gap * share)
        self.count.copy_(total)
