"""The slot ``tokenizer``: waveform <-> codes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fac_lightning.types import SpeechCodes, Waveforms

__all__ = ["SpeechTokenizer"]


class SpeechTokenizer(nn.Module, ABC):
    """Turn waveforms into a grid of codes and back.

    Contract (``fac_lightning.testing.check_tokenizer``): ``n`` samples give ``ceil(n / hop_length)`` frames; padding
    changes no code; ``T`` frames decode to ``T * hop_length`` samples, or as many more as ``output_rate`` is higher;
    both directions run without gradients.
    """

    sample_rate: int  # Hz of the waveforms taken
    hop_length: int  # samples per frame
    num_codebooks: int  # Q
    codebook_size: int  # codes per codebook
    codes_name: str | None = None  # under which others know these codes; data that come with codes say it

    @property
    def frame_rate(self) -> float:
        """Frames per second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def output_rate(self) -> int:
        """Hz of the waveforms given: ``sample_rate``, unless a detokenizer of another rate speaks."""
        return self.sample_rate

    def num_frames(self, num_samples: int) -> int:
        """Frames that ``num_samples`` samples give."""
        return -(-num_samples // self.hop_length)

    @abstractmethod
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, T, Q)`` of waveforms ``(B, S)`` at ``sample_rate``; ``lengths`` ``(B,)`` in samples."""

    @abstractmethod
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms of codes ``(B, T, Q)``; ``lengths`` ``(B,)`` in frames."""
