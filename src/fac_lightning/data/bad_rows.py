"""Rows whose audio cannot be read: they are left out of their line, and a line never becomes empty for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.layout import Clip, Row
from fac_lightning.types import IGNORE

__all__ = ["muted", "with_clips"]


def with_clips(row: Row) -> Row:
    """The row with its clips read.

    Raises:
        BadData: A clip cannot be used, or is not as long as it says.
    """
    if not row.clips:
        return row
    return replace(row, clips=tuple(_read(clip, row.id) for clip in row.clips))


def muted(row: Row) -> Row:
    """The row with silence for its clips and nothing to learn: it stands in a line that would be empty.

    Every process has to give as many lines as the others, and models are not made for lines without a position.
    """
    clips = tuple(Clip(clip.num_samples, _Samples(np.zeros(clip.num_samples, np.int16))) for clip in row.clips)
    return replace(
        row,
        text_labels=np.full_like(row.text_labels, IGNORE),
        speech_labels=np.full_like(row.speech_labels, IGNORE),
        clips=clips,
        seconds=0.0,
    )


def _read(clip: Clip, name: str) -> Clip:
    samples = clip.load()
    if len(samples) != clip.num_samples:
        raise BadData(
            "FAC-A09",
            "a user's clip is not as long as its manifest says",
            f"row {name!r}",
            f"{len(samples)} samples",
            f"{clip.num_samples}",
            "Make the manifest again from the audio.",
        )
    return Clip(clip.num_samples, _Samples(samples))


class _Samples:
    """Samples that were read already."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def __call__(self) -> np.ndarray:
        return self.samples
