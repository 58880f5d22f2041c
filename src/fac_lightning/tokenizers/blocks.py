"""Layers over padded frames that let no padding leak."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ConvBlock", "ConvStack", "FrameNorm"]


class ConvBlock(nn.Module):
    """ConvNeXt block for sequences: a depthwise convolution, then an MLP per frame (https://arxiv.org/abs/2201.03545).

    Args:
        dim: Width of a frame.
        kernel_size: Odd number of frames seen.
        layer_scale: First value of the gain of the residual branch.
    """

    def __init__(self, dim: int, kernel_size: int = 7, layer_scale: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand, self.reduce = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gain = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Map ``(B, T, dim)`` to ``(B, T, dim)``; ``mask`` ``(B, T, 1)`` is 1 where a frame is kept."""
        mixed = self.conv((frames * mask).transpose(1, 2)).transpose(1, 2)
        change: Tensor = self.reduce(nn.functional.gelu(self.expand(self.norm(mixed))))
        return frames + self.gain * change


class ConvStack(nn.Module):
    """Some :class:`ConvBlock` in a row, normalised at the end.

    Args:
        dim: Width of a frame.
        num_blocks: How many.
        kernel_size: Frames seen by each.
    """

    def __init__(self, dim: int, num_blocks: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ConvBlock(dim, kernel_size) for _ in range(num_blocks)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Map ``(B, T, dim)`` to ``(B, T, dim)``; ``mask`` ``(B, T, 1)`` is 1 where a frame is kept."""
        for block in self.blocks:
            frames = block(frames, mask)
        normed: Tensor = self.norm(frames)
        return normed


class FrameNorm(nn.Module):
    """Batch normalisation without scale and shift over the kept frames; running statistics where nothing is learned.

    Before a quantiser it spreads each number over the levels from the first step on, so that codes are not left unused.

    Args:
        dim: Width of a frame.
        momentum: Weight of a new batch in the running statistics.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Normalise ``(B, T, dim)`` with the statistics of frames where ``mask`` ``(B, T, 1)`` is 1."""
        mean, variance = self.mean, self.variance
        if self.training and torch.is_grad_enabled():
            kept = frames.float()[mask.squeeze(-1) > 0]
            mean, variance = kept.mean(0), kept.var(0, unbiased=False)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
                self.variance.lerp_(variance, self.momentum)
        return (frames.float() - mean) * (variance + 1e-5).rsqrt()
