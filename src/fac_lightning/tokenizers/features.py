"""What a tokenizer asks of a speech encoder whose frames it quantises."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from fac_lightning.types import SpeechFeatures

__all__ = ["FeatureExtractor"]


class FeatureExtractor(Protocol):
    """Every ``SpeechEncoder`` gives it."""

    sample_rate: int
    hop_length: int
    dim: int

    def __call__(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, U, dim)`` of waveforms ``(B, S)``."""
