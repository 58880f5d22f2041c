"""Log-mel spectrograms as Whisper takes them, and the way back to magnitudes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["LogMel", "mel_filters"]


def mel_filters(num_mels: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters ``(num_mels, n_fft // 2 + 1)`` of equal area on Slaney's mel scale.

    The scale is linear below 1 kHz and logarithmic above (Slaney, Auditory Toolbox, 1998), as in Whisper.
    """
    step, knee, log_step = 200 / 3, 1000.0, math.log(6.4) / 27

    def to_hz(mel: Tensor) -> Tensor:
        return torch.where(mel < knee / step, mel * step, knee * torch.exp(log_step * (mel - knee / step)))

    top = sample_rate / 2
    top_mel = top / step if top < knee else knee / step + math.log(top / knee) / log_step
    corners = to_hz(torch.linspace(0, top_mel, num_mels + 2, dtype=torch.float64))
    bins = torch.linspace(0, top, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - corners[:-2, None]) / corners.diff()[:-1, None]
    falling = (corners[2:, None] - bins) / corners.diff()[1:, None]
    filters = torch.minimum(rising, falling).clamp(min=0)
    return (filters * (2 / (corners[2:] - corners[:-2]))[:, None]).float()


class LogMel(nn.Module):
    """Whisper's 80-bin log-mel of 16 kHz audio: ``(log10(power) + 4) / 4``, one frame every 10 ms.

    Two things differ from the original, so that a frame depends on nothing but the samples around it: the floor is
    the constant ``log_floor`` instead of 8 below the loudest frame of the recording, and the signal is taken as zero
    (not mirrored) beyond its ends.

    Args:
        log_floor: Smallest log10 power.
    """

    sample_rate = 16000
    hop_length = 160
    n_fft = 400
    num_mels = 80
    filters: Tensor
    window: Tensor

    def __init__(self, log_floor: float = -6.0) -> None:
        super().__init__()
        self.log_floor = log_floor
        filters = mel_filters(self.num_mels, self.n_fft, self.sample_rate)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    @property
    def floor(self) -> float:
        """Value of a silent bin."""
        return (self.log_floor + 4) / 4

    def forward(self, audio: Tensor) -> Tensor:
        """Log-mel ``(B, ceil(S / 160), 80)`` of waveforms ``(B, S)``."""
        audio = F.pad(audio.float(), (0, -audio.shape[1] % self.hop_length))
        spectrum = torch.stft(
            audio, self.n_fft, self.hop_length, window=self.window, pad_mode="constant", return_complex=True
        )
        power = spectrum[..., :-1].abs().square()  # (B, F, T): the frame centred on the end belongs to no sample
        mel = (self.filters @ power).clamp(min=10**self.log_floor).log10()
        return (mel.transpose(1, 2) + 4) / 4

    def magnitudes(self, mel: Tensor, num_steps: int = 20) -> Tensor:
        """Non-negative magnitudes ``(B, F, T)`` whose log-mel is close to ``mel`` ``(B, T, 80)``.

        Multiplicative updates of non-negative least squares (Lee and Seung, 2001, eq. 4). Bins at the floor
        become silent.
        """
        target = (10 ** (mel.float() * 4 - 4)).transpose(1, 2)  # (B, 80, T)
        target = torch.where(mel.transpose(1, 2) <= self.floor + 1e-3, 0.0, target)
        back = self.filters.T
        numerator = back @ target
        power = numerator / (back @ (self.filters @ torch.ones_like(numerator))).clamp(min=1e-12)
        gram = back @ self.filters
        for _ in range(num_steps):
            power = power * numerator / (gram @ power).clamp(min=1e-12)
        return power.sqrt()
