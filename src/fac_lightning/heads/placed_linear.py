"""Linear layers of a transformer's blocks: one matrix for all places of a row, or one for each codebook."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PlacedLinear", "SharedLinear"]


class SharedLinear(nn.Linear):
    """The same matrix at every place.

    Args:
        in_dim: Width of the inputs.
        out_dim: Width of the outputs.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, bias=False)

    def forward(self, inputs: Tensor, place: int | None = None) -> Tensor:
        """Outputs ``(N, out_dim)`` of inputs ``(N, in_dim)``."""
        return super().forward(inputs)


class PlacedLinear(nn.Module):
    """Place ``i`` of a row takes matrix ``i % matrices``.

    Args:
        in_dim: Width of the inputs.
        out_dim: Width of the outputs.
        matrices: P.
    """

    def __init__(self, in_dim: int, out_dim: int, matrices: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(matrices, out_dim, in_dim))
        nn.init.normal_(self.weight, std=in_dim**-0.5)

    def forward(self, inputs: Tensor, place: int | None = None) -> Tensor:
        """Outputs ``(N, out_dim)`` of inputs ``(N, in_dim)``, all at ``place``; a line of whole rows when None."""
        matrices = self.weight.shape[0]
        if place is not None:
            return F.linear(inputs, self.weight[place % matrices])
        grouped = inputs.view(inputs.shape[0] // matrices, matrices, inputs.shape[1])  # (N / P, P, in_dim)
        return torch.einsum("npi,poi->npo", grouped, self.weight).flatten(0, 1)
