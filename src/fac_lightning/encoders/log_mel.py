"""Whisper's log-mel spectrogram in torch, batched, with rows that know nothing of their padding."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["HOP_LENGTH", "SAMPLE_RATE", "log_mel", "mel_filters"]

SAMPLE_RATE = 16000  # Hz
HOP_LENGTH = 160  # samples per mel frame
_WINDOW = 400  # samples per analysis window


def log_mel(audio: Tensor, lengths: Tensor, n_mels: int = 80) -> Tensor:
    """Log-mel frames ``(B, n_mels, 2 * ceil(S / 320))`` of 16 kHz waveforms ``(B, S)``; zero after each row's end.

    A row of ``n`` samples has ``2 * ceil(n / 320)`` frames (10 ms each): an even number, so that a convolution of
    stride 2 gives exactly ``ceil(n / 320)``. Silence follows the last sample, as it does in the 30 s windows that
    Whisper was trained on, so the frames equal those of transformers' ``WhisperFeatureExtractor``; nothing that
    stands in ``audio`` after ``lengths`` is looked at. Always computed in float32.

    Args:
        audio: ``(B, S)`` waveforms.
        lengths: ``(B,)`` samples per row, at most ``S``.
        n_mels: Number of mel bands, 80 or (Whisper large-v3) 128.
    """
    frames = 2 * (-(-audio.shape[1] // (2 * HOP_LENGTH)))
    if audio.numel() == 0:
        return audio.new_zeros(audio.shape[0], n_mels, frames, dtype=torch.float32)
    with torch.autocast(audio.device.type, enabled=False):
        audio = audio.float() * (torch.arange(audio.shape[1], device=audio.device) < lengths[:, None])
        # Two frames more than are given out still see the last samples; their level counts for the floor below.
        extended = (frames + 2) * HOP_LENGTH
        audio = F.pad(audio, (0, extended + _WINDOW // 2 - audio.shape[1]))
        audio = F.pad(audio[:, None], (_WINDOW // 2, 0), mode="reflect")[:, 0]
        window = torch.hann_window(_WINDOW, device=audio.device)
        spectrum = torch.stft(audio, _WINDOW, HOP_LENGTH, window=window, center=False, return_complex=True)
        power = spectrum[..., : frames + 2].abs().square()  # (B, bins, frames + 2)
        mel = (mel_filters(n_mels).to(audio.device) @ power).clamp(min=1e-10).log10()

        seen = 2 * (-(-lengths // (2 * HOP_LENGTH)))
        position = torch.arange(frames + 2, device=audio.device)
        loudest = mel.masked_fill(position >= seen[:, None, None] + 2, -torch.inf).amax(dim=(1, 2), keepdim=True)
        mel = (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0
        return mel[..., :frames].masked_fill(position[:frames] >= seen[:, None, None], 0.0)


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> Tensor:
    """Slaney's mel filters ``(n_mels, 201)``, each of unit area, for 16 kHz and a window of 400 samples.

    The scale is linear below 1 kHz (15 bands) and logarithmic above (27 bands for a factor of 6.4): M. Slaney,
    Auditory Toolbox, Technical Report 1998-010.
    """
    top = 15.0 + 27.0 * np.log(SAMPLE_RATE / 2 / 1000.0) / np.log(6.4)
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * 6.4 ** ((mels - 15.0) / 27.0))  # Hz
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return torch.from_numpy(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).float()
