"""Frames that are codes -> backbone positions: user speech as tokens, in the place of continuous features.

Legend: B clips, T frames, Q codebooks, W width of a frame.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.adapters.codes import CodeEmbedding
from fac_lightning.adapters.features import ConcatGrouping
from fac_lightning.adapters.jitter import Jitter
from fac_lightning.types import SpeechFeatures

__all__ = ["CodeFeatureGrouping", "DigitFeatureGrouping"]


class _CodeFrames(ConcatGrouping):
    """What both have: codes that arrive as floats become frames of numbers, which are concatenated and projected."""

    codebook_size: int

    def __init__(
        self, width: int, codebook_size: int, group_size: int, dim: int, num_codebooks: int, dropout: float, jitter: int
    ) -> None:
        if min(codebook_size, num_codebooks) < 1:
            raise ValueError(
                f"codebook_size and num_codebooks must be at least 1, got {codebook_size} and {num_codebooks}"
            )
        super().__init__(width, group_size, dim)
        self.codebook_size, self.in_dim = codebook_size, num_codebooks
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
        return super().forward(self.dropout(self.numbers(codes)), lengths)

    @abstractmethod
    def numbers(self, codes: Tensor) -> Tensor:
        """Frames ``(B, T, W)`` of codes ``(B, T, Q)``."""


class CodeFeatureGrouping(_CodeFrames):
    """Embed the codes that an encoder gives as frames, then concatenate and project them as :class:`ConcatGrouping`.

    It goes with ``fac_lightning.encoders.TokenizerEncoder``. The table is its own: what the model hears and what it
    says may be codes of different tokenizers. Codebooks of a frame are summed. Every row of the table must be heard
    often before it means something; where little speech is at hand, see :class:`DigitFeatureGrouping`.

    Args:
        codebook_size: Codes per codebook.
        group_size: Frames per position; the last group of a clip is filled with zeros.
        dim: Width of the backbone.
        num_codebooks: Codes of a frame, Q.
        embed_dim: Width of a frame's embedding; ``dim`` when None.
        dropout: Share of the embeddings' numbers blanked in training.
        jitter: Most frames by which a batch's clips are moved to the left in training; less than ``group_size``.
    """

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
        width = dim if embed_dim is None else embed_dim
        super().__init__(width, codebook_size, group_size, dim, num_codebooks, dropout, jitter)
        self.embed = CodeEmbedding(codebook_size, num_codebooks, width)

    def numbers(self, codes: Tensor) -> Tensor:
        """Embeddings ``(B, T, W)`` of codes ``(B, T, Q)``."""
        embeds: Tensor = self.embed(codes)
        return embeds


class DigitFeatureGrouping(_CodeFrames):
    """Read a code as its digits, each one of a few levels, then concatenate and project as :class:`ConcatGrouping`.

    The code of a finite scalar quantiser (https://arxiv.org/abs/2309.15505) is a number whose digits are the levels of
    its dimensions: 8 of 3 levels in ``FSQTokenizer`` and in S3 v2 and v3. Codes that differ in one digit sound alike,
    and a projection of digits knows it from the start, while a table learns each of 6561 codes on its own.

    Args:
        codebook_size: Codes per codebook, a power of ``levels``.
        group_size: Frames per position; the last group of a clip is filled with zeros.
        dim: Width of the backbone.
        num_codebooks: Codes of a frame, Q.
        levels: Of a digit.
        dropout: Share of the digits' numbers blanked in training.
        jitter: Most frames by which a batch's clips are moved to the left in training; less than ``group_size``.
    """

    powers: Tensor

    def __init__(
        self,
        codebook_size: int,
        group_size: int,
        dim: int,
        num_codebooks: int = 1,
        levels: int = 3,
        dropout: float = 0.0,
        jitter: int = 0,
    ) -> None:
        powers = [1]
        while powers[-1] < codebook_size and levels > 1:
            powers.append(powers[-1] * levels)
        if powers.pop() != codebook_size or not powers:
            raise ValueError(
                f"codebook_size {codebook_size} is no power of levels {levels}, so its codes have no digits that mean "
                "something; give the levels of the tokenizer's finite scalar quantiser, or take CodeFeatureGrouping"
            )
        super().__init__(
            num_codebooks * len(powers) * levels, codebook_size, group_size, dim, num_codebooks, dropout, jitter
        )
        self.levels = levels
        self.register_buffer("powers", torch.tensor(powers, device="cpu"), persistent=False)

    def numbers(self, codes: Tensor) -> Tensor:
        """Frames ``(B, T, W)``: a number per level of each digit, standardised for levels that are equally likely."""
        digits = codes[..., None] // self.powers % self.levels  # (B, T, Q, digits)
        chosen = F.one_hot(digits, self.levels).flatten(2).to(self.proj.weight.dtype)
        numbers: Tensor = (chosen * self.levels - 1) / (self.levels - 1) ** 0.5
        return numbers
