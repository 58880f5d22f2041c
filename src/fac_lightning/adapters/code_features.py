"""Frames that are codes -> backbone positions: user speech as tokens, in the place of continuous features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fac_lightning.adapters.codes import CodeEmbedding
from fac_lightning.adapters.features import ConcatGrouping
from fac_lightning.adapters.jitter import Jitter
from fac_lightning.types import SpeechFeatures

__all__ = ["CodeFeatureGrouping"]


class CodeFeatureGrouping(ConcatGrouping):
    """Embed the codes that an encoder gives as frames, then concatenate and project them as :class:`ConcatGrouping`.

    It goes with ``fac_lightning.encoders.TokenizerEncoder``. The table is its own: what the model hears and what it
    says may be codes of different tokenizers. Codebooks of a frame are summed.

    Args:
        codebook_size: Codes per codebook.
        group_size: Frames per position; the last group of a clip is filled with zeros.
        dim: Width of the backbone.
        num_codebooks: Codes of a frame, Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
        dropout: Share of the embeddings' numbers blanked in training.
        jitter: Most frames by which a batch's clips are moved to the left in training; less than ``group_size``.
    """

    codebook_size: int

    def __init__(
        self,
        codebook_size: int,
        group_size: int,
        dim: int,
        num_codebooks: int = 1,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        jitter: int = 0,
    ) -> None:
        if min(codebook_size, num_codebooks) < 1:
            raise ValueError(
                f"codebook_size and num_codebooks must be at least 1, got {codebook_size} and {num_codebooks}"
            )
        super().__init__(dim if embed_dim is None else embed_dim, group_size, dim)
        self.codebook_size, self.in_dim = codebook_size, num_codebooks
        self.embed = CodeEmbedding(codebook_size, num_codebooks, dim if embed_dim is None else embed_dim)
        self.jitter = Jitter(jitter, group_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of codes ``(B, T, num_codebooks)`` as floats.

        Raises:
            ValueError: The frames are of a float type that cannot tell these codes apart.
        """
        exact = 2 / torch.finfo(features.dtype).eps  # whole numbers up to here have a float of their own
        if features.numel() and self.codebook_size - 1 > exact:
            raise ValueError(
                f"codes up to {self.codebook_size - 1} came as {features.dtype}, exact up to {exact:.0f} only; keep "
                "the encoder's frames in float32, as TokenizerEncoder gives them"
            )
        inside = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        codes = self.jitter(features.masked_fill(~inside[..., None], 0), lengths).long()
        return super().forward(self.dropout(self.embed(codes)), lengths)
