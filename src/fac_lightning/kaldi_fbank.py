"""Kaldi's filter banks in torch, batched, with rows that know nothing of their padding."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FBANK_HOP", "FBANK_WINDOW", "kaldi_fbank"]

SAMPLE_RATE = 16000  # Hz
FBANK_HOP = 160  # samples per frame
FBANK_WINDOW = 400  # samples per analysis window
_FFT = 512
_LOWEST = 20.0  # Hz, where the first filter begins


def kaldi_fbank(audio: Tensor, n_mels: int = 80) -> Tensor:
    """Log filter banks ``(B, (S - 400) // 160 + 1, n_mels)`` of 16 kHz waveforms ``(B, S)`` in [-1, 1].

    Frames begin at multiples of 160 samples and lie whole inside the waveform. The numbers are those of Kaldi, and of
    transformers' ``SeamlessM4TFeatureExtractor``, without dither; always computed in float32.

    Args:
        audio: ``(B, S)`` waveforms, S at least 400.
        n_mels: Number of filters.
    """
    with torch.autocast(audio.device.type, enabled=False):
        frames = audio.float().unfold(1, FBANK_WINDOW, FBANK_HOP) * 2.0**15  # (B, T, 400), as 16-bit integers
        frames = frames - frames.mean(2, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
        frames = (frames - 0.97 * before) * _window().to(audio.device)
        power = torch.fft.rfft(frames, _FFT).abs().square()  # (B, T, bins)
        bands: Tensor = power @ _filters(n_mels).to(audio.device)
        return bands.clamp(min=torch.finfo(torch.float32).eps).log()


@lru_cache(maxsize=1)
def _window() -> Tensor:
    """Povey's window: Hann's to the power 0.85."""
    return torch.hann_window(FBANK_WINDOW, periodic=False, dtype=torch.float64).pow(0.85).float()


@lru_cache(maxsize=4)
def _filters(n_mels: int) -> Tensor:
    """Triangles ``(257, n_mels)`` between 20 Hz and 8 kHz, straight on the mel scale 1127 ln(1 + f / 700)."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    low, high = mel(torch.tensor([_LOWEST, SAMPLE_RATE / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    bins = mel(torch.linspace(0, SAMPLE_RATE / 2, _FFT // 2 + 1, dtype=torch.float64))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).float()
