"""The slot ``tokenizer``: waveform <-> codes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.types import SpeechCodes, Waveforms

__all__ = ["SpeechTokenizer"]


class SpeechTokenizer(nn.Module, ABC):
    """Turn waveforms into a grid of codes and back.

    Contract (``fac_lightning.testing.check_tokenizer``): ``n`` samples give ``ceil(n / hop_length)`` frames; padding
    changes no code; ``T`` frames decode to ``T * hop_length`` samples, or as many more as ``output_rate`` is higher;
    both directions run without gradients; where ``causal``, chunks decoded as they come give what ``decode`` gives.

    A decoder state belongs to rows that are spoken together and to who asked for it; nothing of them is kept on the
    part.
    """

    sample_rate: int  # Hz of the waveforms taken
    hop_length: int  # samples per frame
    num_codebooks: int  # Q
    codebook_size: int  # codes per codebook
    codes_name: str | None = None  # under which others know these codes; data that come with codes say it
    causal: bool = False  # no sample waits for a later frame: decode_chunk() can speak while codes are still made
    first_chunk_frames: int = 1  # frames that the first chunk must have, where a decoder mirrors its beginning

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

    def new_decoder_state(self, batch_size: int) -> Any:
        """State of ``batch_size`` fresh rows for ``decode_chunk``.

        Raises:
            ValueError: If the codec is not causal.
        """
        raise ValueError(self._no_stream())

    def decode_chunk(self, codes: Tensor, state: Any) -> Tensor:
        """Samples ``(B, t * hop_length)`` of the next codes ``(B, t, Q)``; in a row they are those of ``decode``.

        Args:
            codes: What follows the codes already given; may be empty. The first chunk has ``first_chunk_frames`` or
                more: speak rows that end before by ``decode``.
            state: What ``new_decoder_state`` gave; it moves on.

        Raises:
            ValueError: If the codec is not causal, or the first chunk is too short.
        """
        raise ValueError(self._no_stream())

    def silence_codes(self, num_frames: int) -> Tensor:
        """Codes ``(num_frames, Q)`` of digital silence, as they stand where no edge of a clip is near."""
        if num_frames < 0:
            raise ValueError(f"num_frames must be at least 0, got {num_frames}")
        weight = next(chain(self.parameters(), self.buffers()), torch.zeros(()))
        margin = math.ceil(self.frame_rate)  # one second: what the edges of a clip do to its codes has died away
        audio = torch.zeros(1, (num_frames + 2 * margin) * self.hop_length, device=weight.device)
        return self.encode(audio).codes[0, margin : margin + num_frames]

    def _no_stream(self) -> str:
        return (
            f"{type(self).__name__} cannot decode chunks: its samples depend on codes that follow (causal is false); "
            "decode whole rows with decode()"
        )
