"""What a step works on: conversations of given lengths in a packed line, as a batch without words and without sound.

Legend: N positions, k frames per group, Q codebooks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fac_lightning.types import IGNORE, SpeechGeometry, SpeechTextBatch, Waveforms

__all__ = ["Conversation", "LineBudget", "conversation_batch", "packed_batch"]


@dataclass(frozen=True)
class Conversation:
    """One question and one answer; the default is that of the cost model in ``docs/estimate.md``."""

    prompt_tokens: int = 60  # text in front of the answer: system prompt, chat marks, earlier text
    user_seconds: float = 6.0  # the question
    reply_seconds: float = 12.0  # the answer
    tokens_per_second: float = 3.5  # of text, where a side is written and not spoken
    heard: bool = True  # the question is speech
    said: bool = True  # the answer is speech

    def __post_init__(self) -> None:
        """Refuse lengths below zero, and a conversation of nothing."""
        for name in ("prompt_tokens", "user_seconds", "reply_seconds", "tokens_per_second"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.prompt_tokens + self.user_seconds + self.reply_seconds == 0:
            raise ValueError("a conversation of no prompt, no question and no answer has nothing to train on")

    @property
    def seconds(self) -> float:
        """Seconds of the conversation, spoken or as long as speaking would take."""
        return self.user_seconds + self.reply_seconds


@dataclass(frozen=True)
class LineBudget:
    """What a packed line may hold; the names are those of the data module."""

    capacity: int = 2048  # backbone positions
    max_audio_seconds: float | None = None  # of users' speech
    max_speech_tokens: int | None = None  # frames to say


@dataclass(frozen=True)
class _Row:
    """Positions of one conversation."""

    prompt: int
    heard: int
    said: int
    written: int  # the answer as text

    @property
    def length(self) -> int:
        return self.prompt + self.heard + self.said + self.written


def packed_batch(
    conversation: Conversation, geometry: SpeechGeometry, budget: LineBudget, frame_rate: float
) -> SpeechTextBatch:
    """The fullest line: as many conversations as the budget holds, and of one more what still fits.

    Args:
        conversation: What is packed.
        geometry: Of the model.
        budget: Of the line.
        frame_rate: Codes a second.

    Raises:
        ValueError: The budget holds nothing of a conversation.
    """
    row = _row(conversation, geometry, frame_rate)
    limits = [budget.capacity / row.length]
    if budget.max_audio_seconds is not None and conversation.heard and conversation.user_seconds:
        limits.append(budget.max_audio_seconds / conversation.user_seconds)
    if budget.max_speech_tokens is not None and row.said:
        limits.append(budget.max_speech_tokens / (row.said * geometry.group_size))
    count = math.floor(min(limits) + 1e-9)
    rest = round((min(limits) - count) * row.length)
    rows = [row] * count + ([_shortened(row, rest)] if rest > 0 else [])
    if not rows:
        raise ValueError(f"a line of {budget.capacity} positions holds nothing of a conversation of {row.length}")
    return _batch(rows, geometry, budget.capacity, _seconds(rows, row, conversation))


def conversation_batch(
    conversation: Conversation, geometry: SpeechGeometry, frame_rate: float, count: int = 1
) -> SpeechTextBatch:
    """A line of ``count`` whole conversations, whatever its length comes to."""
    rows = [_row(conversation, geometry, frame_rate)] * count
    return _batch(rows, geometry, sum(row.length for row in rows), conversation.seconds * count)


def _row(conversation: Conversation, geometry: SpeechGeometry, frame_rate: float) -> _Row:
    hears = conversation.heard and geometry.samples_per_position > 0
    says = conversation.said and geometry.codebook_size > 0
    words = math.ceil(conversation.reply_seconds * conversation.tokens_per_second)
    asked = math.ceil(conversation.user_seconds * conversation.tokens_per_second)
    samples = round(conversation.user_seconds * geometry.sample_rate)
    return _Row(
        prompt=conversation.prompt_tokens + (0 if hears else asked),
        heard=-(-samples // geometry.samples_per_position) if hears else 0,
        said=math.ceil(round(conversation.reply_seconds * frame_rate) / geometry.group_size) if says else 0,
        written=0 if says else words,
    )


def _shortened(row: _Row, length: int) -> _Row:
    """A row of so many positions, cut from its end."""
    prompt = min(row.prompt, length)
    heard = min(row.heard, length - prompt)
    said = min(row.said, length - prompt - heard)
    return replace(row, prompt=prompt, heard=heard, said=said, written=min(row.written, length - prompt - heard - said))


def _seconds(rows: list[_Row], whole: _Row, conversation: Conversation) -> float:
    """Seconds of a line: of a conversation that was cut, its share."""
    return conversation.seconds * sum(row.length for row in rows) / whole.length


def _batch(rows: list[_Row], geometry: SpeechGeometry, capacity: int, seconds: float) -> SpeechTextBatch:
    group = (geometry.group_size, geometry.num_codebooks)
    lengths = torch.tensor([row.length for row in rows])
    total = int(lengths.sum())
    starts = (lengths.cumsum(0) - lengths).tolist()

    def span(begin: list[int], sizes: list[int]) -> torch.Tensor:
        places = [torch.arange(size) + first for first, size in zip(begin, sizes, strict=True)]
        return torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)

    heard_at = span([s + row.prompt for s, row in zip(starts, rows, strict=True)], [row.heard for row in rows])
    reply_starts = [s + row.prompt + row.heard for s, row in zip(starts, rows, strict=True)]
    said_at = span(reply_starts, [row.said for row in rows])
    learned = span(reply_starts, [row.said + row.written for row in rows])
    text_mask = torch.ones(total, dtype=torch.bool).index_fill(0, heard_at, False)
    labels = torch.full((total,), IGNORE).index_fill(0, learned, 0)
    coded_at = torch.cat([heard_at, said_at]) if geometry.user_codes else said_at
    samples = torch.tensor([row.heard * geometry.samples_per_position for row in rows if row.heard], dtype=torch.int64)
    longest = int(samples.max()) if len(samples) else 0
    replies = torch.tensor([row.said for row in rows if row.said], dtype=torch.int64)
    frames = len(said_at) * geometry.group_size
    return SpeechTextBatch(
        text_ids=torch.zeros(total, dtype=torch.int64),
        text_mask=text_mask,
        position_ids=span([0] * len(rows), lengths.tolist()),
        lengths=lengths,
        text_labels=labels,
        codes=torch.zeros(len(coded_at), *group, dtype=torch.int64),
        code_positions=coded_at,
        speech_positions=said_at,
        speech_labels=torch.zeros(len(said_at), *group, dtype=torch.int64),
        reply_lengths=replies,
        audio=Waveforms(torch.zeros(len(samples), longest), samples, geometry.sample_rate),
        feature_positions=heard_at,
        capacity=capacity,
        seconds=seconds,
        text_token_total=len(learned),
        speech_token_total=frames * geometry.num_codebooks,
    )
