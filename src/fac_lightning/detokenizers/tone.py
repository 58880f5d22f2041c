"""Codes as tones: a detokenizer without weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.detokenizers.base import SpeechDetokenizer
from fac_lightning.types import Waveforms

__all__ = ["ToneDetokenizer", "ToneState"]

TURN = 2**32  # phases are whole parts of a turn, so that chunks join to the bit
TABLE_BITS = 16  # of the sine table


@dataclass
class ToneState:
    """One utterance on its way."""

    held: Tensor  # (0 or 1, Q) int64, the frame that still waits for its successor
    phase: Tensor  # (Q,) int64, parts of a turn
    ended: bool = False


class ToneDetokenizer(SpeechDetokenizer):
    """Whistle codes: one gliding tone per codebook, its pitch the code's place between ``low`` and ``high``.

    It stands in for a real detokenizer where none is installed: streams, lengths and files come out right, speech does
    not. A tone glides towards the code that follows, so a frame is spoken one frame later than it comes.

    Args:
        sample_rate: Of the waveforms, Hz.
        hop_length: Samples per frame.
        num_codebooks: Codes per frame.
        codebook_size: Codes per codebook.
        low: Pitch of code 0, Hz.
        high: Pitch of the last code, Hz.
    """

    steps: Tensor
    sine: Tensor

    def __init__(
        self,
        sample_rate: int = 24000,
        hop_length: int = 960,
        num_codebooks: int = 1,
        codebook_size: int = 6561,
        low: float = 150.0,
        high: float = 3000.0,
    ) -> None:
        super().__init__()
        if not 0 < low <= high < sample_rate / 2:
            raise ValueError(f"tones need 0 < low <= high < {sample_rate / 2:g} Hz, got low {low:g} and high {high:g}")
        self.sample_rate, self.hop_length = sample_rate, hop_length
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        places = torch.linspace(0, 1, codebook_size, dtype=torch.float64)
        steps = low * (high / low) ** places / sample_rate * TURN  # parts of a turn per sample
        self.register_buffer("steps", steps.round().long(), persistent=False)
        angles = torch.arange(2**TABLE_BITS, dtype=torch.float64) * (2 * torch.pi / 2**TABLE_BITS)
        self.register_buffer("sine", (0.3 * angles.sin() / num_codebooks).float(), persistent=False)

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, Q)``; ``lengths`` ``(B,)`` in frames.

        Raises:
            ValueError: A code is not one of ``codebook_size``.
        """
        if lengths is None:
            lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        self.check_codes(codes, lengths)
        frame = torch.arange(codes.shape[1], device=codes.device)
        there = frame < lengths[:, None]
        codes = codes * there[..., None]
        following = torch.where((frame == lengths[:, None] - 1)[..., None], codes, codes.roll(-1, 1))
        audio, _ = self._tones(codes, following, codes.new_zeros(codes.shape[0], codes.shape[2]))
        audio = audio * there.repeat_interleave(self.hop_length, 1)
        return Waveforms(audio, lengths * self.hop_length, self.sample_rate)

    def new_state(self) -> ToneState:
        """State of a fresh utterance for ``stream``."""
        nothing = torch.zeros(1, self.num_codebooks, dtype=torch.long, device=self.steps.device)
        return ToneState(held=nothing[:0], phase=nothing[0])

    @torch.no_grad()
    def stream(self, codes: Tensor, state: ToneState, final: bool = False) -> Tensor:
        """Samples ``(S,)`` of all frames but the last one given; of that too when ``final``.

        Raises:
            ValueError: A code is not one of ``codebook_size``, or the utterance has ended.
        """
        self.check_codes(codes)
        if state.ended:
            raise ValueError("this utterance has ended; new_state() begins another")
        frames = torch.cat([state.held.to(codes.device), codes])  # (N, Q)
        following = torch.cat([frames[1:], frames[-1:]])
        count = len(frames) if final else max(0, len(frames) - 1)
        audio, phase = self._tones(frames[None, :count], following[None, :count], state.phase.to(codes.device)[None])
        state.held, state.phase, state.ended = frames[count:], phase[0], final
        return audio[0]

    def _tones(self, codes: Tensor, following: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Samples ``(B, T * hop_length)`` of frames ``(B, T, Q)`` that glide to ``following``, and the phase after.

        ``phase`` ``(B, Q)`` is that of the first sample. All phases are integers modulo a turn.
        """
        steps, ends = self.steps[codes], self.steps[following]  # (B, T, Q)
        hop = self.hop_length
        sample = torch.arange(hop + 1, device=codes.device)
        glide = (ends - steps)[..., None] * sample.square() // (2 * hop)
        turned = steps[..., None] * sample + glide  # (B, T, Q, hop + 1)
        before = turned[..., hop].cumsum(1) - turned[..., hop] + phase[:, None]
        phases = (before[..., None] + turned[..., :hop]) % TURN
        audio = self.sine[phases // (TURN >> TABLE_BITS)].sum(2).flatten(1)  # (B, T * hop)
        return audio, (phase + turned[..., hop].sum(1)) % TURN
