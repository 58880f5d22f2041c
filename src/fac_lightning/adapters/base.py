"""The slots ``code_adapter``, ``feature_adapter`` and ``fusion``: what fills one backbone position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fac_lightning.adapters.composed import ComposedCodes
from fac_lightning.types import SpeechFeatures, code_vocab_size

__all__ = ["CodeAdapter", "FeatureAdapter", "FrameStream", "Fusion"]


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

    @property
    def composed_places(self) -> int:
        """Places of a group that ``composed_tables`` has tables of: k, or 1 for all. 0: it has none."""
        return 0

    def composed_tables(self) -> tuple[Tensor, Tensor | None]:
        """Tables ``(P, Q, V, dim)`` whose rows add up to a position, and what is added once ``(dim,)``.

        Only for adapters that say ``composed_places``; V is ``code_vocab_size`` and pad has its row too.
        """
        raise NotImplementedError(f"{type(self).__name__} has composed_places but no composed_tables")

    def compose(self, most_bytes: int | None = None) -> ComposedCodes:
        """The same for inference by lookups alone; equal but for the order of sums, as weights are now.

        Args:
            most_bytes: Largest tables that are made; None sets no limit.

        Raises:
            ValueError: A position of this adapter is no sum over its codes, or the tables are too large.
        """
        name, places = type(self).__name__, self.composed_places
        if places == 0:
            raise ValueError(
                f"{name} cannot be composed, for a position is no sum over its codes; leave compose out, or take "
                "ConcatCodeGrouping or MeanCodeGrouping"
            )
        rows = places * self.num_codebooks * code_vocab_size(self.codebook_size)
        size = rows * self.dim * next(self.parameters()).element_size()
        if most_bytes is not None and size > most_bytes:
            raise ValueError(
                f"{name} as composed tables takes {size / 2**20:.0f} MiB, {rows} rows of {self.dim}, and at most "
                f"{most_bytes / 2**20:.0f} MiB are allowed; leave compose out"
            )
        with torch.no_grad():
            return ComposedCodes(*self.composed_tables())

    @abstractmethod
    def forward(self, codes: Tensor) -> Tensor:
        """Embeddings ``(C, dim)`` of groups ``(C, group_size, num_codebooks)``; special codes allowed."""


@dataclass
class FrameStream:
    """Frames of B clips that wait for the rest of their group; the clips advance together."""

    frames: Tensor  # (B, r, in_dim)


class FeatureAdapter(nn.Module, ABC):
    """Fold ``group_size`` feature frames into one backbone position.

    Contract (``check_adapter``): ``T`` frames give ``ceil(T / group_size)`` positions, which stand in time where their
    groups do; a position sees what ``context`` says; padding a row changes none of its positions; and frames that come
    bit by bit (``new_state``, ``step`` ..., ``finish``) give the positions that they give at once.
    """

    group_size: int
    in_dim: int  # width of the encoder's frames
    dim: int  # width of the backbone
    codebook_size: int | None = None  # frames are codes below it, one per codebook, as floats; None: features
    context: Literal["group", "past"] = "group"  # a position sees its own group alone, or earlier frames too
    variable_rate: bool = False  # ``SpeechFeatures.present`` says at which positions something came out

    @abstractmethod
    def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
        """Positions ``(B, ceil(T / group_size), dim)`` of frames ``(B, T, in_dim)``."""

    def new_state(self, batch_size: int) -> Any:
        """State of ``batch_size`` clips of which nothing was heard yet, for ``step``."""
        like = next(self.parameters(), torch.empty(0))
        return FrameStream(like.new_zeros(batch_size, 0, self.in_dim))

    def step(self, features: Tensor, state: Any) -> SpeechFeatures:
        """Positions ``(B, P, dim)`` that the next frames ``(B, t, in_dim)`` complete; ``state`` moves on.

        A position comes out with the last frame of its group, at the latest with the first one after it. This one
        serves every adapter whose ``context`` is ``group``.
        """
        if self.context != "group":
            raise NotImplementedError(
                f"{type(self).__name__} sees the past, which the step of groups would cut off; give it new_state, step "
                "and finish of its own"
            )
        frames = torch.cat([state.frames, features], dim=1)
        whole = frames.shape[1] // self.group_size * self.group_size
        state.frames = frames[:, whole:]
        return self._at_once(frames[:, :whole])

    def finish(self, state: Any) -> SpeechFeatures:
        """Positions ``(B, P, dim)`` of the frames that still wait: the clips end here."""
        return self._at_once(state.frames)

    def _at_once(self, frames: Tensor) -> SpeechFeatures:
        rows, length = frames.shape[:2]
        if length == 0:
            return SpeechFeatures(
                frames.new_zeros(rows, 0, self.dim), torch.zeros(rows, dtype=torch.long, device=frames.device)
            )
        positions: SpeechFeatures = self(frames, torch.full((rows,), length, device=frames.device))
        return positions


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
