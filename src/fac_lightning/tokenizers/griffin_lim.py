"""Waveforms from magnitudes alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["griffin_lim"]


def griffin_lim(
    magnitudes: Tensor, lengths: Tensor, window: Tensor, hop_length: int, num_steps: int = 32, momentum: float = 0.99
) -> Tensor:
    """Fast Griffin-Lim (https://hal.science/hal-01059818, algorithm 2), batched.

    Samples after each length stay zero in every step, and the first phases are the same for every row, so that a row
    comes out the same alone and in a padded batch.

    Args:
        magnitudes: ``(B, F, T)``, frame ``t`` centred on sample ``t * hop_length``.
        lengths: ``(B,)`` samples, at most ``T * hop_length``.
        window: ``(n_fft,)``, with ``F = n_fft // 2 + 1``.
        hop_length: Samples between frames.
        num_steps: Iterations; 32 are enough for speech.
        momentum: 0 gives plain Griffin-Lim.

    Returns:
        Waveforms ``(B, T * hop_length)``.
    """
    batch, bins, frames = magnitudes.shape
    num_samples, n_fft = frames * hop_length, window.numel()
    extra = -(-n_fft // (2 * hop_length))  # frames beyond the end that still touch samples before it
    inside = torch.arange(num_samples, device=magnitudes.device) < lengths[:, None]
    # frames that start after the end of a row must be silent whatever stands there
    starts = torch.arange(frames, device=magnitudes.device) * hop_length
    magnitudes = F.pad(magnitudes * (starts < lengths[:, None])[:, None], (0, extra))
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(frames + extra, bins, generator=generator).to(magnitudes).T * (2 * torch.pi)
    current = torch.polar(torch.ones_like(phase), phase).expand(batch, -1, -1)  # (B, F, T + extra)
    previous = torch.zeros_like(current)

    def to_audio(spectrum: Tensor) -> Tensor:
        audio = torch.istft(spectrum, n_fft, hop_length, window=window, length=num_samples)
        return torch.where(inside, audio, 0.0)

    for _ in range(num_steps):
        audio = F.pad(to_audio(magnitudes * current), (0, (extra - 1) * hop_length))
        rebuilt = torch.stft(audio, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)
        current = rebuilt + momentum * (rebuilt - previous)
        current = current / current.abs().clamp(min=1e-12)
        previous = rebuilt
    return to_audio(magnitudes * current)
