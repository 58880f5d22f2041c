"""Speech encoders that hear a limited stretch of sound at once."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.types import SpeechFeatures

__all__ = ["WindowedEncoder"]


class WindowedEncoder(SpeechEncoder):
    """Cut clips longer than ``max_frames`` into windows, so that nothing of them is left out.

    Windows follow each other without overlap and do not see each other: the frames on both sides of a seam know only
    their own side. Windows of all clips are rows of one batch; those that hold no sample are not among them.
    """

    max_frames: int  # frames of a window

    @abstractmethod
    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Frames ``(W, T, dim)`` of windows; those after ``ceil(lengths / hop_length)`` may hold anything.

        Args:
            inputs: ``(W, N, ...)`` windows of what ``prepare`` gives, ``N / T`` entries a frame, then zeros.
            lengths: ``(W,)`` samples of each, at least 1.
        """

    def prepare(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """What windows are cut out of: ``(B, N, ...)``, as many entries for each of ``ceil(S / hop_length)`` frames.

        The waveforms with silence after their ends, unless overridden for what is computed over whole clips.

        Args:
            audio: ``(B, S)`` waveforms.
            lengths: ``(B,)`` samples of each row, which may be 0.
        """
        audio = audio.masked_fill(torch.arange(audio.shape[1], device=audio.device) >= lengths[:, None], 0.0)
        return F.pad(audio, (0, -audio.shape[1] % self.hop_length))

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)`` at ``sample_rate``; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        lengths = lengths.to(audio.device)
        frames = -(-lengths // self.hop_length)
        longest = -(-audio.shape[1] // self.hop_length)
        size = min(self.max_frames, longest)  # frames of a window
        per_row = -(-longest // self.max_frames)
        starts = torch.arange(per_row, device=audio.device) * size * self.hop_length
        samples = (lengths[:, None] - starts).clamp(0, size * self.hop_length)  # (B, per_row)
        held = samples > 0
        if not held.any():
            zeros = next(self.parameters()).new_zeros(audio.shape[0], longest, self.dim)
            return SpeechFeatures(zeros, frames)

        inputs = self.prepare(audio, lengths)
        step = inputs.shape[1] // longest  # entries a frame
        after = [0, 0] * (inputs.dim() - 2) + [0, (per_row * size - longest) * step]
        windows = F.pad(inputs, after).unflatten(1, (per_row, size * step))[held]
        hidden = self.encode(windows, samples[held])
        inside = torch.arange(size, device=audio.device) < -(-samples[held] // self.hop_length)[:, None]
        hidden = hidden * inside[..., None]
        features = hidden.new_zeros(*held.shape, *hidden.shape[1:]).index_put((held,), hidden)
        return SpeechFeatures(features.flatten(1, 2)[:, :longest], frames)
