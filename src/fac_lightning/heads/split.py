"""A hidden state as one vector for each frame or pass, and how the layers around a head's transformer start.

Legend: H groups to say, P parts, D width of the backbone, W width of the head.
"""

from __future__ import annotations

from torch import Tensor, nn

from fac_lightning.heads.code_table import CodeTable

__all__ = ["Split", "start_small"]


class Split(nn.Linear):
    """Project a hidden state and split it into ``parts`` vectors (W_p of the Fun-Audio-Chat report).

    Args:
        dim: Width of the backbone, D.
        parts: P.
        width: Width of a vector, W.
    """

    def __init__(self, dim: int, parts: int, width: int) -> None:
        super().__init__(dim, parts * width)
        self.parts = parts

    def forward(self, hidden: Tensor) -> Tensor:
        """Vectors ``(H, P, W)`` of hidden states ``(H, D)``."""
        vectors: Tensor = super().forward(hidden).unflatten(-1, (self.parts, -1))
        return vectors


def start_small(split: nn.Linear, table: CodeTable, output: nn.Linear | None = None) -> None:
    """Initialise what a head reads and what it says.

    Condition and codes start alike, and small beside what the blocks add: on toy codes this reaches a given loss in
    about half the steps of PyTorch's defaults. Backbones give hidden states of unit size.
    """
    nn.init.normal_(split.weight, std=0.1 * split.in_features**-0.5)
    nn.init.zeros_(split.bias)
    nn.init.normal_(table.weight, std=0.1)
    if output is not None:
        nn.init.normal_(output.weight, std=0.02)
