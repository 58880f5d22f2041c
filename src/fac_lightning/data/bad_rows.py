"""Rows whose audio cannot be read: they are left out of their line, and a line never becomes empty for it.

Every process has to give as many lines as the others, and models are not made for lines without a position: where no
row of a line can be read, one stands there with silence and nothing to learn.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.layout import Clip, Passage, Row
from fac_lightning.prompts import MODES

__all__ = ["passage_with_clips", "silent", "silent_passage", "with_clips"]


def with_clips(row: Row) -> Row:
    """The row with its clips read.

    Raises:
        BadData: A clip cannot be used, or is not as long as it says.
    """
    if not row.clips:
        return row
    return replace(row, clips=tuple(_read(clip, row.id) for clip in row.clips))


def passage_with_clips(passage: Passage) -> Passage:
    """The passage with the clips read that its mode hears.

    Raises:
        BadData: A clip cannot be used, or is not as long as it says.
    """
    if not MODES[passage.mode].hears or not any(turn.clip for turn in passage.turns):
        return passage
    turns = tuple(
        replace(turn, clip=_read(turn.clip, passage.row_id)) if turn.clip is not None else turn
        for turn in passage.turns
    )
    return replace(passage, turns=turns)


def silent_passage(passage: Passage) -> Passage:
    """The passage with silence for its clips."""
    turns = tuple(replace(turn, clip=turn.clip and _silent(turn.clip)) for turn in passage.turns)
    return replace(passage, turns=turns)


def silent(row: Row) -> Row:
    """The row with silence for its clips."""
    return replace(row, clips=tuple(map(_silent, row.clips)), seconds=0.0)


def _silent(clip: Clip) -> Clip:
    if clip.hop_length:
        return Clip(clip.num_samples, _Samples(np.zeros((clip.length, 0), np.float16)), clip.hop_length)
    return Clip(clip.num_samples, _Samples(np.zeros(clip.num_samples, np.int16)))


def _read(clip: Clip, name: str) -> Clip:
    samples = clip.load()
    if len(samples) != clip.length:
        raise BadData(
            "FAC-A09",
            "a user's clip is not as long as its manifest says",
            f"row {name!r}",
            f"{len(samples)} {'frames' if clip.hop_length else 'samples'}",
            f"{clip.length}",
            "Make the manifest again from the audio.",
        )
    return Clip(clip.num_samples, _Samples(samples), clip.hop_length)


class _Samples:
    """Samples that were read already."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def __call__(self) -> np.ndarray:
        return self.samples
