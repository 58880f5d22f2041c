"""The slot ``encoder``: waveform -> continuous features."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fac_lightning.types import SpeechFeatures

__all__ = ["SpeechEncoder"]


class SpeechEncoder(nn.Module, ABC):
    """Turn waveforms into frames of features.

    Contract (``fac_lightning.testing.check_encoder``): ``n`` samples give exactly ``ceil(n / hop_length)`` frames, a
    zero-length row gives none, and padding a row changes none of its frames.
    """

    sample_rate: int  # Hz of the waveforms taken
    hop_length: int  # samples per frame
    dim: int  # width of a frame
    remembers: bool = False  # what it said of a clip is kept, which is of use only where clips come again unchanged
    codebook_size: int | None = None  # frames are codes below it, as floats to be kept exactly; None: features

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    @abstractmethod
    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)`` at ``sample_rate``; ``lengths`` ``(B,)`` in samples."""
