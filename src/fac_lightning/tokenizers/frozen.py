"""What codecs with ready weights share: ragged batches in which no padding reaches a code, and chunks of a stream."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms

__all__ = ["DecoderState", "FrozenCodec"]

BATCH_SECONDS = 120.0  # of one call of the network, padding included


@dataclass
class DecoderState:
    """What a decoder remembers of rows that are spoken together."""

    batch_size: int
    frames: int = 0  # given so far
    memory: dict[Any, Any] = field(default_factory=dict)  # of the network's layers, by layer


class FrozenCodec(SpeechTokenizer):
    """A codec that is run and not trained; a subclass says what its network does with rows of one length.

    Rows are filled with silence to whole frames and run in groups of equal length, so that padding reaches no code,
    however the network treats the edges of what it is given. It is always in eval mode and never in half precision.
    """

    least_codebooks: int = 1  # without which nothing can be spoken
    padded_from: int | None = None  # frames from which a row may stand in a longer batch; None: no row may

    @abstractmethod
    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of waveforms ``(B, T * hop_length)``."""

    @abstractmethod
    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, S)`` of codes ``(B, T, q)``; cut to whole frames, or filled up with silence."""

    def stream_rows(self, codes: Tensor, memory: dict[Any, Any]) -> Tensor:
        """Waveforms ``(B, t * hop_length)`` of the next codes ``(B, t, q)``; only where ``causal``."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, ceil(S / hop_length), Q)`` of waveforms ``(B, S)``; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        frames = -(-lengths // self.hop_length)
        longest = self.num_frames(audio.shape[1])
        audio = audio.float().masked_fill(torch.arange(audio.shape[1], device=audio.device) >= lengths[:, None], 0)
        audio = F.pad(audio, (0, longest * self.hop_length - audio.shape[1]))
        codes = torch.zeros(audio.shape[0], longest, self.num_codebooks, dtype=torch.long, device=audio.device)
        with torch.autocast(audio.device.type, enabled=False):  # half precision would move numbers across a border
            for rows, count in self._groups(frames):
                codes[rows, :count] = self.encode_rows(audio[rows, : count * self.hop_length])
        return SpeechCodes(codes.masked_fill(_beyond(frames, longest)[..., None], 0), frames)

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)`` with ``q`` up to ``Q``; ``lengths`` in frames.

        Raises:
            ValueError: If a code is outside ``[0, codebook_size)``.
        """
        if lengths is None:
            lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        codes = codes.masked_fill(_beyond(lengths, codes.shape[1])[..., None], 0)
        self.check_codes(codes)
        hop = self.hop_length * self.output_rate // self.sample_rate
        samples = lengths * hop
        audio = torch.zeros(codes.shape[0], codes.shape[1] * hop, device=codes.device)
        with torch.autocast(codes.device.type, enabled=False):
            for rows, count in self._groups(lengths):
                said = self.decode_rows(codes[rows, :count])[:, : count * hop]
                audio[rows, : said.shape[1]] = said
        return Waveforms(audio.masked_fill(_beyond(samples, audio.shape[1]), 0), samples, self.output_rate)

    def new_decoder_state(self, batch_size: int) -> DecoderState:
        """State of ``batch_size`` fresh rows for ``decode_chunk``.

        Raises:
            ValueError: If the codec is not causal.
        """
        if not self.causal:
            super().new_decoder_state(batch_size)
        return DecoderState(batch_size)

    @torch.no_grad()
    def decode_chunk(self, codes: Tensor, state: DecoderState) -> Tensor:
        """Samples ``(B, t * hop_length)`` of the next codes ``(B, t, q)``; in a row they are those of ``decode``.

        Raises:
            ValueError: If the codec is not causal, the first chunk is too short, or a code is none.
        """
        if not self.causal:
            super().decode_chunk(codes, state)
        self.check_codes(codes)
        count = codes.shape[1]
        if codes.shape[0] != state.batch_size:
            raise ValueError(f"the state was made for {state.batch_size} rows, codes have {codes.shape[0]}")
        if count == 0:
            return torch.zeros(codes.shape[0], 0, device=codes.device)
        if state.frames == 0 and count < self.first_chunk_frames:
            raise ValueError(
                f"the first chunk of {type(self).__name__} must have {self.first_chunk_frames} frames or more, got "
                f"{count}: its decoder mirrors the beginning; wait for more, or speak a row this short with decode()"
            )
        with torch.autocast(codes.device.type, enabled=False):
            said = self.stream_rows(codes, state.memory)
        state.frames += count
        return said

    def check_codes(self, codes: Tensor) -> None:
        """Refuse what is no grid of codes ``(B, T, q)``, special codes included.

        Raises:
            ValueError: Says what is wrong.
        """
        if not self.least_codebooks <= codes.shape[-1] <= self.num_codebooks:
            raise ValueError(
                f"{type(self).__name__} speaks codes of {self.least_codebooks} to {self.num_codebooks} codebooks, got "
                f"{codes.shape[-1]}"
            )
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "cut off special codes (bos, eos, pad) before decoding"
            )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a codec that is trained along would change what its codes mean."""
        return super().train(False)

    def _groups(self, lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Rows that may run together and up to which frame, of lengths ``(B,)`` in frames; empty rows are left out."""
        together = lengths >= max(1, self.padded_from) if self.padded_from is not None else lengths < 0
        groups = [(together.nonzero().squeeze(1), int(lengths[together].max()))] if together.any() else []
        for count in lengths[~together].unique().tolist():
            if count:
                groups.append(((lengths == count).nonzero().squeeze(1), count))
        for rows, count in groups:
            size = max(1, int(BATCH_SECONDS * self.frame_rate / count))
            for part in rows.split(size):
                yield part, count


def _beyond(lengths: Tensor, size: int) -> Tensor:
    """True after each length, ``(B, size)``."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]
