"""How a spoken reply lies in backbone positions: one rule for layout (training) and for generation.

A spoken reply opens with ``<|audio_bos|>``, its position 0. The positions behind it hold a text token each and, while
speech lasts, a group of codes; ``<|audio_eos|>`` and the closing of the turn follow. A rule says how the codes are cut
into groups, from which positions they are said, what leads in and what ends, and which of text and speech waits for
the other. Data and generation take the same object, so that what is said is what was learned.

Legend: T frames of a reply, k frames per group, Q codebooks, C groups put in, H groups to say, B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fac_lightning.types import IGNORE, SpeechGeometry, bos_code, eos_code, pad_code

__all__ = ["ClosedGroups", "FrameEnd", "GroupEnd", "ReplyGroups", "ReplyRule", "close_group", "reply_rule"]


@dataclass(frozen=True)
class ReplyGroups:
    """The codes of a reply, cut into groups."""

    codes: np.ndarray  # (C, k, Q) int64, put in at the reply's positions 1 .. C
    labels: np.ndarray  # (H, k, Q) int64 or IGNORE, said from the positions first .. first + H - 1
    first: int


@dataclass(frozen=True, eq=False)
class ClosedGroups:
    """Groups that a head said, as training writes them."""

    groups: Tensor  # (B, k, Q) int64
    speech: Tensor  # (B, k) bool, frames of real codes before the end
    ended: Tensor  # (B,) bool, the row's speech ends in this group


class ReplyRule(ABC):
    """How a spoken reply lies in backbone positions.

    A rule of your own derives from this class; data and generation take any (``data.reply`` of a recipe).
    """

    text_goes_on: ClassVar[bool]  # text longer than speech goes on without codes; else the end of speech ends both
    learns_newline: ClassVar[bool]  # text is learned up to the newline behind <|im_end|>, else up to <|im_end|>

    @property
    @abstractmethod
    def lead_in_groups(self) -> int:
        """Groups of ``bos`` that are put in first, without being said."""

    @property
    @abstractmethod
    def says_bos(self) -> bool:
        """Whether the head says the lead-in itself: ``bos`` may then be a label, and be said until a code was."""

    @abstractmethod
    def cut(self, codes: np.ndarray, geometry: SpeechGeometry) -> ReplyGroups:
        """Groups of a reply's codes ``(T, Q)``.

        Raises:
            ValueError: The codes do not have the geometry's codebooks.
        """

    @abstractmethod
    def close(self, groups: Tensor, codebook_size: int) -> ClosedGroups:
        """Groups ``(B, k, Q)`` that a head said, as training would have them."""

    @abstractmethod
    def filler(self, codebook_size: int) -> int:
        """The code that stands behind ``eos`` to the end of its group, as a head with a memory is shown it."""


@dataclass(frozen=True)
class FrameEnd(ReplyRule):
    """Speech ends with one frame of ``eos``; text may go on behind it.

    The code stream is the frames of the reply and one frame of ``eos``, cut into groups of ``k``; the last group is
    filled with ``pad``, which is not learned. Text shorter than speech is followed by ``<|sil|>``; where text is
    longer, its last positions hold no codes. Nothing is lost of either.

    Args:
        lead_in: Groups of ``bos`` put in before the first group, so that text runs ahead. They are not learned.
    """

    lead_in: int = 0

    text_goes_on: ClassVar[bool] = True
    learns_newline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a negative lead-in."""
        if self.lead_in < 0:
            raise ValueError(f"lead_in must not be negative, got {self.lead_in}; it counts groups of bos before speech")

    @property
    def lead_in_groups(self) -> int:
        """Groups of ``bos`` that are put in first."""
        return self.lead_in

    @property
    def says_bos(self) -> bool:
        """Never: generation puts the lead-in there."""
        return False

    def cut(self, codes: np.ndarray, geometry: SpeechGeometry) -> ReplyGroups:
        """Groups of a reply's codes ``(T, Q)``; see ``ReplyRule.cut``."""
        k, q, size = geometry.group_size, geometry.num_codebooks, geometry.codebook_size
        stream, lead = _checked(codes, geometry), self.lead_in * k
        end = lead + len(codes)
        groups = np.empty((lead + _filled(len(codes) + 1, k), q), dtype=np.int64)
        groups[:lead] = bos_code(size)
        groups[lead:end] = stream
        groups[end] = eos_code(size)
        labels = groups[lead:].copy()
        groups[end + 1 :] = pad_code(size)
        labels[end + 1 - lead :] = IGNORE
        return ReplyGroups(groups.reshape(-1, k, q), labels.reshape(-1, k, q), first=self.lead_in)

    def close(self, groups: Tensor, codebook_size: int) -> ClosedGroups:
        """The first frame with a special code becomes ``eos``, what follows ``pad``."""
        closed, speech = close_group(groups, codebook_size)
        return ClosedGroups(closed, speech, ~speech.all(1))

    def filler(self, codebook_size: int) -> int:
        """``pad``, as layout fills the last group."""
        return pad_code(codebook_size)


@dataclass(frozen=True)
class GroupEnd(ReplyRule):
    """Speech ends with a whole group of ``eos``, said instead of a group: the rule of the released Fun-Audio-Chat.

    The code stream is ``lead_in_codes`` codes of ``bos`` and the frames of the reply, cut into groups of ``k``; all of
    it is learned, the lead-in too, but not the ``pad`` that fills the last group. From the position of the last group
    the head says a group of ``eos``, which is never put in: the next position is ``<|audio_eos|>`` alone. Text shorter
    than speech is followed by ``<|sil|>``; of longer text the released model keeps what speech has positions for, and
    so does this rule. Text labels run to the newline behind ``<|im_end|>``.

    In generation the head says the lead-in itself. A group with an ``eos`` ends the reply; codes before it are kept,
    where the released model throws the whole group away.

    Args:
        lead_in_codes: Codes of ``bos`` before the first code of speech, so that text runs ahead. Needs a head that can
            say them (``SpeechHead.says_special``) unless 0.
    """

    lead_in_codes: int = 10

    text_goes_on: ClassVar[bool] = False
    learns_newline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a negative lead-in."""
        if self.lead_in_codes < 0:
            raise ValueError(
                f"lead_in_codes must not be negative, got {self.lead_in_codes}; it counts codes of bos before speech"
            )

    @property
    def lead_in_groups(self) -> int:
        """None: the head says the lead-in."""
        return 0

    @property
    def says_bos(self) -> bool:
        """Whether there is a lead-in."""
        return self.lead_in_codes > 0

    def cut(self, codes: np.ndarray, geometry: SpeechGeometry) -> ReplyGroups:
        """Groups of a reply's codes ``(T, Q)``; see ``ReplyRule.cut``."""
        k, q, size = geometry.group_size, geometry.num_codebooks, geometry.codebook_size
        stream, lead = _checked(codes, geometry), self.lead_in_codes
        end = lead + len(codes)
        filled = _filled(end, k)
        labels = np.full((filled + k, q), IGNORE, dtype=np.int64)
        labels[:lead] = bos_code(size)
        labels[lead:end] = stream
        labels[filled:] = eos_code(size)
        groups = labels[:filled].copy()
        groups[end:] = pad_code(size)
        return ReplyGroups(groups.reshape(-1, k, q), labels.reshape(-1, k, q), first=0)

    def close(self, groups: Tensor, codebook_size: int) -> ClosedGroups:
        """From the first frame with an ``eos`` on, all becomes ``eos``."""
        eos = eos_code(codebook_size)
        over = (groups == eos).any(-1).cumsum(1) > 0  # (B, k)
        speech = ~over & (groups < codebook_size).all(-1)
        return ClosedGroups(groups.masked_fill(over[..., None], eos), speech, over[:, -1])

    def filler(self, codebook_size: int) -> int:
        """``eos``: the group that ends speech is one of ``eos`` alone."""
        return eos_code(codebook_size)


def reply_rule(lead_in: int = 0, reply: ReplyRule | None = None) -> ReplyRule:
    """The rule ``reply``, or ``FrameEnd(lead_in)`` where none is given.

    Raises:
        ValueError: Both are given.
    """
    if reply is None:
        return FrameEnd(lead_in)
    if lead_in:
        raise ValueError(f"lead_in={lead_in} and reply={reply} are both given: give reply alone, it says what leads in")
    return reply


def close_group(codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Groups ``(B, k, Q)`` that end with a frame, and the frames ``(B, k)`` bool that are speech.

    The first frame with a special code becomes ``eos`` in all codebooks and the frames after it ``pad``.
    """
    special = (codes >= codebook_size).any(-1)
    ends = special.cumsum(1)
    closed = torch.where((ends > 0)[..., None], pad_code(codebook_size), codes)
    closed = torch.where((special & (ends == 1))[..., None], eos_code(codebook_size), closed)
    return closed, ends == 0


def _checked(codes: np.ndarray, geometry: SpeechGeometry) -> np.ndarray:
    """Codes ``(T, Q)``, if they have the model's codebooks."""
    if codes.ndim != 2 or codes.shape[1] != geometry.num_codebooks:
        raise ValueError(
            f"codes have the shape {codes.shape}; the model has {geometry.num_codebooks} codebooks: (T, "
            f"{geometry.num_codebooks}). Give data and model the same tokenizer"
        )
    return codes


def _filled(frames: int, group_size: int) -> int:
    """Frames of the groups that hold ``frames``."""
    return -(-frames // group_size) * group_size
