"""A frozen encoder whose features are read from a store: it costs nothing once every clip was heard."""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.types import SpeechFeatures

__all__ = ["StoredFeatures"]


class StoredFeatures(SpeechEncoder):
    """Features of the right shape without any work, in place of a ``CachedEncoder`` from the second epoch on.

    Args:
        encoder: What made the features; it lies in memory and does not run.
    """

    def __init__(self, encoder: SpeechEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.sample_rate, self.hop_length, self.dim = encoder.sample_rate, encoder.hop_length, encoder.dim
        self.codebook_size = encoder.codebook_size

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)``, all zero."""
        rows, frames = audio.shape[0], -(-audio.shape[1] // self.hop_length)
        if lengths is None:
            lengths = torch.full((rows,), audio.shape[1])
        return SpeechFeatures(audio.new_zeros(rows, frames, self.dim), -(-lengths // self.hop_length))
