"""A small speech encoder that is trained from scratch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.log_mel import HOP_LENGTH, SAMPLE_RATE, log_mel
from fac_lightning.types import SpeechFeatures

__all__ = ["MelEncoder"]


class MelEncoder(SpeechEncoder):
    """Log-mel frames, halved to 50 a second, through a few ConvNeXt blocks.

    No weights to fetch and a context of some hundred milliseconds: for tests, for closed domains, and as a base line
    that a pretrained encoder has to beat.

    Args:
        n_mels: Number of mel bands.
        dim: Width of the features.
        num_layers: ConvNeXt blocks.
        kernel_size: Frames of 20 ms that a block sees, odd.
    """

    sample_rate = SAMPLE_RATE
    hop_length = 2 * HOP_LENGTH

    def __init__(self, n_mels: int = 80, dim: int = 256, num_layers: int = 4, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that a frame has as much past as future, got {kernel_size}")
        self.n_mels, self.dim = n_mels, dim
        self.stem = nn.Conv1d(n_mels, dim, kernel_size=3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_ConvNeXtBlock(dim, kernel_size) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)`` at 16 kHz; ``lengths`` ``(B,)`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        lengths = lengths.to(audio.device)
        frames = -(-lengths // self.hop_length)
        longest = -(-audio.shape[1] // self.hop_length)
        if audio.numel() == 0:
            return SpeechFeatures(self.norm.weight.new_zeros(audio.shape[0], longest, self.dim), frames)
        mask = (torch.arange(longest, device=audio.device) < frames[:, None])[..., None]  # (B, T, 1)
        mel = log_mel(audio, lengths, self.n_mels).to(self.stem.weight.dtype)
        hidden = F.gelu(self.stem(mel)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden * mask)
        return SpeechFeatures(self.norm(hidden) * mask, frames)


class _ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then an MLP over width, around a residual; https://arxiv.org/abs/2201.03545."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.contract = nn.Linear(4 * dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Frames ``(B, T, dim)`` to frames ``(B, T, dim)``; what lies after a row's end must be zero."""
        mixed = self.norm(self.depthwise(hidden.transpose(1, 2)).transpose(1, 2))
        mixed = self.contract(F.gelu(self.expand(mixed)))
        return torch.add(hidden, mixed)
