"""Finite scalar quantisation: every code is a point of a small grid, nothing is learned or kept (arXiv 2309.15505)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FiniteScalarQuantizer"]


class FiniteScalarQuantizer(nn.Module):
    """Round each of ``num_dims`` numbers to one of ``num_levels`` levels in [-1, 1].

    The code is the little-endian number of the levels: the first dimension changes fastest, as in S3Tokenizer v2.
    Gradients pass the rounding as if it were not there (straight through).

    Args:
        num_dims: Numbers per frame.
        num_levels: Odd number of levels per dimension.
    """

    powers: Tensor

    def __init__(self, num_dims: int = 8, num_levels: int = 3) -> None:
        super().__init__()
        if num_levels < 3 or num_levels % 2 == 0:
            raise ValueError(f"num_levels must be odd and at least 3 so that zero is a level, got {num_levels}")
        self.num_dims, self.num_levels, self.codebook_size = num_dims, num_levels, num_levels**num_dims
        self.register_buffer("powers", num_levels ** torch.arange(num_dims), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Grid points ``(..., num_dims)`` of unbounded latents ``(..., num_dims)``."""
        bounded, half = torch.tanh(latents), self.num_levels // 2
        rounded = (bounded * half).round() / half
        return bounded + (rounded - bounded).detach()

    def to_codes(self, points: Tensor) -> Tensor:
        """Codes ``(...)`` of grid points ``(..., num_dims)``."""
        half = self.num_levels // 2
        return (((points * half).round().long() + half) * self.powers).sum(-1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """Grid points ``(..., num_dims)`` of codes ``(...)``.

        Raises:
            ValueError: If a code is outside ``[0, codebook_size)``.
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebook_size:
            raise ValueError(
                f"codes must lie in [0, {self.codebook_size}), got {int(codes.min())} to {int(codes.max())}; "
                "cut off special codes (bos, eos, pad) before decoding"
            )
        half = self.num_levels // 2
        return (codes.unsqueeze(-1) // self.powers % self.num_levels - half) / half
