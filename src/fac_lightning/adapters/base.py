"""The slots ``code_adapter``, ``feature_adapter`` and ``fusion``: what fills one backbone position."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fac_lightning.types import SpeechFeatures

__all__ = ["CodeAdapter", "FeatureAdapter", "Fusion"]


class CodeAdapter(nn.Module, ABC):
    """Embed groups of codes. Contract (``check_adapter``): a group of pad codes only embeds to a constant."""

    group_size: int  # k
    num_codebooks: int  # Q
    codebook_size: int
    dim: int  # width of the backbone

    @property
    def code_table(self) -> nn.Parameter | None:
        """The table ``(rows, dim)`` that a tied head may say codes with; None when there is none to share."""
        return None

    @abstractmethod
    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``; special codes allowed."""


class FeatureAdapter(nn.Module, ABC):
    """Fold ``group_size`` feature frames into one backbone position.

    Contract (``check_adapter``): ``T`` frames give ``ceil(T / group_size)`` positions, position ``i`` depends on the
    frames of group ``i`` alone, and padding a row changes none of its positions.
    """

    group_size: int
    in_dim: int  # width of the encoder's frames
    dim: int  # width of the backbone
    codebook_size: int | None = None  # frames are codes below it, one per codebook, as floats; None: features

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``."""


class Fusion(nn.Module, ABC):
    """Join the streams that meet at a position: text, codes and user features, in this order.

    A stream whose adapter the model does not have is left out.
    """

    reads_user_codes: bool = False  # user speech comes with (pad) codes too; layout then puts them there

    @abstractmethod
    def forward(self, streams: Tensor, present: Tensor) -> Tensor:
        """One embedding ``(N, D)`` of streams ``(M, N, D)`` where ``present`` ``(M, N)`` bool says which are there.

        ``streams`` is zero where ``present`` is False.
        """
