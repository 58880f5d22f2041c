"""Packing: rows of any length become full lines, without padding.

Legend: N positions of a line, R rows in it, A clips, S samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch

from fac_lightning.data.layout import Clip, Cost, Row
from fac_lightning.types import SpeechFeatures, SpeechTextBatch, Waveforms

__all__ = ["Budget", "Packable", "collate_line", "line_of", "pack_lines", "share_totals"]


class Packable(Protocol):
    """What takes room in a line and stays together: a row, the rows of a pair of answers, or the plan of either."""

    @property
    def id(self) -> str:
        """Name, for messages."""

    @property
    def cost(self) -> Cost:
        """What it takes of a line."""


R_ = TypeVar("R_", bound=Packable)


@dataclass(frozen=True)
class Budget:
    """What one line may hold."""

    positions: int
    audio_seconds: float = math.inf  # of the users' clips, which the speech encoder runs over
    speech_tokens: float = math.inf  # code frames to say, which the speech head runs over

    def __post_init__(self) -> None:
        """Refuse empty budgets."""
        if min(self.positions, self.audio_seconds, self.speech_tokens) <= 0:
            raise ValueError(f"every budget of a line must be positive, got {self}")

    @property
    def limits(self) -> tuple[float, float, float]:
        """The three limits."""
        return self.positions, self.audio_seconds, self.speech_tokens

    def fits(self, row: Packable) -> bool:
        """Whether a row fits into an empty line."""
        return self.takes(row.cost)

    def takes(self, cost: Cost) -> bool:
        """Whether so much fits into an empty line."""
        positions, seconds, tokens = cost
        return positions <= self.positions and seconds <= self.audio_seconds and tokens <= self.speech_tokens


def pack_lines(
    rows: Iterable[R_], budget: Budget, look_ahead: int = 64, max_lines: int | None = None
) -> Iterator[list[R_]]:
    """Group rows into lines online, each row where it leaves the least room (best fit).

    Args:
        rows: A stream, also an endless one.
        budget: Of a line.
        look_ahead: Lines kept open. When a row fits none of them, the fullest is given out.
        max_lines: Lines in all. The row for which one more would have to be opened ends the stream; it is the only
            one that was taken from it and is in no line.

    Yields:
        The rows of one line. At the end of the stream the open lines follow, the oldest first.

    Raises:
        ValueError: A row does not fit an empty line.
    """
    limits = budget.limits
    bound = [i for i in range(3) if math.isfinite(limits[i])]
    # Open lines, the fullest first: positions, seconds and tokens that each still takes, behind the positions the
    # line's number, so that the older of two equal ones comes first.
    room: list[tuple[float, int, float, float]] = []
    lines: dict[int, list[R_]] = {}
    opened = 0
    for row in rows:
        positions, seconds, tokens = cost = row.cost
        if not budget.takes(cost):
            raise ValueError(
                f"row {row.id!r} needs (positions, audio seconds, speech tokens) {list(cost)}, a line takes "
                f"{list(limits)}; raise the budget or leave the row out"
            )
        place = bisect_left(room, (positions,))
        while place < len(room) and (seconds > room[place][2] or tokens > room[place][3]):
            place += 1
        if place < len(room):
            left, number, left_seconds, left_tokens = room.pop(place)
            lines[number].append(row)
        else:
            if opened == max_lines:
                break
            if len(lines) == look_ahead:
                yield lines.pop(room.pop(_fullest(room, limits, bound))[1])
            left, number, left_seconds, left_tokens = limits[0], opened, limits[1], limits[2]
            lines[number] = [row]
            opened += 1
        if left == positions:
            yield lines.pop(number)
        else:
            insort(room, (left - positions, number, left_seconds - seconds, left_tokens - tokens))
    yield from lines.values()


def _fullest(room: Sequence[tuple[float, int, float, float]], limits: Sequence[float], bound: Sequence[int]) -> int:
    """Place of the line that is fullest by any budget."""
    if bound == [0]:
        return 0

    def free(place: int) -> tuple[float, int]:
        left = (room[place][0], *room[place][2:])
        return min(left[i] / limits[i] for i in bound), room[place][1]

    return min(range(len(room)), key=free)


def collate_line(rows: Sequence[Row], capacity: int, sample_rate: int = 0) -> SpeechTextBatch:
    """One packed line of rows; the clips are read here.

    Args:
        rows: At least one.
        capacity: Positions that the line could have held.
        sample_rate: Hz of the clips; 0 where there is no speech.

    Raises:
        BadData: A clip cannot be read, or is not as long as it says.
    """
    lengths = [len(row.text_ids) for row in rows]
    starts = np.cumsum([0, *lengths[:-1]])
    joined = (
        rows[0]
        if len(rows) == 1
        else Row(
            id=rows[0].id,
            text_ids=np.concatenate([row.text_ids for row in rows]),
            text_mask=np.concatenate([row.text_mask for row in rows]),
            text_labels=np.concatenate([row.text_labels for row in rows]),
            codes=np.concatenate([row.codes for row in rows]),
            code_positions=_shifted([row.code_positions for row in rows], starts),
            speech_positions=_shifted([row.speech_positions for row in rows], starts),
            speech_labels=np.concatenate([row.speech_labels for row in rows]),
            reply_lengths=np.concatenate([row.reply_lengths for row in rows]),
            feature_positions=_shifted([row.feature_positions for row in rows], starts),
            clips=tuple(clip for row in rows for clip in row.clips),
            audio_seconds=sum(row.audio_seconds for row in rows),
            seconds=sum(row.seconds for row in rows),
        )
    )
    return line_of(joined, lengths, tuple(row.id for row in rows), capacity, sample_rate)


def line_of(row: Row, lengths: Sequence[int], ids: tuple[str, ...], capacity: int, sample_rate: int) -> SpeechTextBatch:
    """The packed line of a row that holds several end to end (``lay_out_line``); the clips are read here.

    Args:
        row: All rows of the line.
        lengths: Positions of each.
        ids: Of each.
        capacity: Positions that the line could have held.
        sample_rate: Hz of the clips; 0 where there is no speech.
    """
    sizes = np.array(lengths)
    heard = _features(row.clips)
    return SpeechTextBatch(
        text_ids=torch.from_numpy(row.text_ids),
        text_mask=torch.from_numpy(row.text_mask),
        position_ids=torch.from_numpy(np.arange(len(row.text_ids)) - np.repeat(sizes.cumsum() - sizes, sizes)),
        lengths=torch.from_numpy(sizes),
        text_labels=torch.from_numpy(row.text_labels),
        codes=torch.from_numpy(row.codes),
        code_positions=torch.from_numpy(row.code_positions),
        speech_positions=torch.from_numpy(row.speech_positions),
        speech_labels=torch.from_numpy(row.speech_labels),
        reply_lengths=torch.from_numpy(row.reply_lengths),
        audio=_waveforms(row.clips if heard is None else (), sample_rate),
        feature_positions=torch.from_numpy(row.feature_positions),
        capacity=capacity,
        seconds=row.seconds,
        text_token_total=row.num_text_labels,
        speech_token_total=row.num_speech_labels,
        ids=ids,
        heard=heard,
    )


def _shifted(positions: Sequence[np.ndarray], starts: np.ndarray) -> np.ndarray:
    """Positions in rows as positions in the line."""
    shifts = np.repeat(starts, [len(each) for each in positions])
    shifted: np.ndarray = np.concatenate(positions) + shifts
    return shifted


def share_totals(lines: Sequence[SpeechTextBatch]) -> list[SpeechTextBatch]:
    """The lines of one optimizer step, each with the labelled tokens of all of them as its totals."""
    text, speech = sum(x.text_token_total for x in lines), sum(x.speech_token_total for x in lines)
    return [replace(x, text_token_total=text, speech_token_total=speech) for x in lines]


def _features(clips: Sequence[Clip]) -> SpeechFeatures | None:
    """What an encoder has said of the clips ``(A, T, D)``, right padded with zeros; None where they are samples.

    A clip that could not be read has features of no width, and is zero.

    Raises:
        ValueError: Clips are of both kinds, or of several widths.
    """
    if not any(clip.hop_length for clip in clips):
        return None
    if not all(clip.hop_length for clip in clips):
        raise ValueError(
            "a line holds clips with features beside clips with samples; give all sources features "
            "(fac data shard --features), or train from audio (data.features: false)"
        )
    loaded = [clip.load() for clip in clips]
    widths = sorted({one.shape[1] for one in loaded if one.ndim == 2} - {0})
    wrong = [i for i, one in enumerate(loaded) if one.ndim != 2 or len(one) != clips[i].length]
    if wrong or len(widths) > 1:
        told = (
            f"widths {widths}" if not wrong else f"shape {loaded[wrong[0]].shape} for {clips[wrong[0]].length} frames"
        )
        raise ValueError(f"the features of a line do not go together: {told}")
    lengths = torch.tensor([len(one) for one in loaded], dtype=torch.int64)
    features = torch.zeros(len(loaded), int(lengths.max()), widths[0] if widths else 0)
    for i, one in enumerate(loaded):
        if one.shape[1]:
            features[i, : len(one)] = torch.from_numpy(one.astype(np.float32))
    return SpeechFeatures(features, lengths)


def _waveforms(clips: Sequence[Clip], sample_rate: int) -> Waveforms:
    """Clips ``(A, S)``, right padded with zeros; int16 samples become floats."""
    lengths = torch.tensor([clip.num_samples for clip in clips], dtype=torch.int64)
    audio = torch.zeros(len(clips), int(lengths.max()) if len(clips) else 0)
    for i, clip in enumerate(clips):
        samples = clip.load()
        if len(samples) != clip.num_samples:
            raise ValueError(f"a clip gave {len(samples)} samples where {clip.num_samples} were promised")
        scale = 1 / 32768 if samples.dtype == np.int16 else 1.0
        audio[i, : len(samples)] = torch.from_numpy(samples.astype(np.float32) * scale)
    return Waveforms(audio, lengths, sample_rate)
