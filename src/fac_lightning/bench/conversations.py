"""The work that all implementations are given: spoken questions and answers of fixed lengths and random contents.

Four conversations of ``TRAIN_SHAPES`` are the training batch that the released code was measured with: 39.6 s of audio,
446 positions at 5 Hz (592 when padded), 124 groups to say.

Legend: S samples, T code frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fac_lightning.bench.sizes import BenchSizes
from fac_lightning.bench.words import WordTokenizer
from fac_lightning.data.layout import Clip, Row, SpokenTurn, lay_out
from fac_lightning.data.packing import collate_line
from fac_lightning.prompts import ChatFormat
from fac_lightning.types import SpeechGeometry, SpeechTextBatch

__all__ = ["TRAIN_SHAPES", "Conversation", "make_conversations", "pack"]

SAMPLE_RATE = 16000
#: groups of user speech and of the reply, at 5 Hz, of the rows of a training batch
TRAIN_SHAPES = ((10, 18), (14, 23), (18, 29), (32, 54))
#: words of the system prompt that bring a row to 62 positions beside its speech
PROMPT_WORDS = 43
WORDS_PER_SECOND = 2.5


@dataclass(frozen=True)
class Conversation:
    """A spoken question and its spoken answer."""

    id: str
    system: str  # system prompt
    audio: np.ndarray  # (S,) float32 at 16 kHz, the user's question
    text: str  # what the answer says
    codes: np.ndarray  # (T,) int64, how it sounds
    frame_rate: float  # of the codes, Hz

    @property
    def seconds(self) -> float:
        """Of speech, user and assistant."""
        return len(self.audio) / SAMPLE_RATE + len(self.codes) / self.frame_rate


def make_conversations(
    sizes: BenchSizes,
    count: int = 4,
    shapes: Sequence[tuple[int, int]] = TRAIN_SHAPES,
    prompt_words: int = PROMPT_WORDS,
    seed: int = 0,
) -> list[Conversation]:
    """Conversations whose lengths go round in ``shapes``, their contents drawn from ``seed``.

    The codes of a reply of G groups fill them but for one frame, which is left to the mark of the end.
    """
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        heard, said = shapes[index % len(shapes)]
        samples = round(heard * sizes.group_size / sizes.frame_rate * SAMPLE_RATE)
        frames = said * sizes.group_size - 1
        words = max(1, int(WORDS_PER_SECOND * frames / sizes.frame_rate))
        made.append(
            Conversation(
                id=f"bench-{index}",
                system=" ".join(f"rule{i}" for i in range(prompt_words)),
                audio=generator.uniform(-0.3, 0.3, samples).astype(np.float32),
                text=" ".join(f"word{i}" for i in generator.integers(0, 1000, words)),
                codes=generator.integers(0, sizes.codebook_size, frames),
                frame_rate=sizes.frame_rate,
            )
        )
    return made


def lay_out_conversation(conversation: Conversation, geometry: SpeechGeometry) -> Row:
    """A conversation as one row of positions, at the rate of the geometry."""
    audio = conversation.audio
    clip = Clip(len(audio), lambda: audio)
    seconds = len(conversation.codes) / conversation.frame_rate
    turns = [
        SpokenTurn("user", "", clip=clip, seconds=len(audio) / SAMPLE_RATE),
        SpokenTurn("assistant", conversation.text, codes=conversation.codes[:, None], seconds=seconds),
    ]
    chat = ChatFormat(WordTokenizer(geometry.vocab_size))
    return lay_out(conversation.id, turns, chat, geometry, system=conversation.system)


def pack(conversations: Sequence[Conversation], geometry: SpeechGeometry) -> SpeechTextBatch:
    """One packed line of conversations, as training sees it; it is exactly full."""
    rows = [lay_out_conversation(each, geometry) for each in conversations]
    return collate_line(rows, sum(map(len, rows)), geometry.sample_rate)
