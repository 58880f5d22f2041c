"""The rows of a pair of answers, and how much each of their labels counts.

Legend: N positions of a row, H groups to say, k frames per group, Q codebooks, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from fac_lightning.data.layout import Cost, Row
from fac_lightning.data.packing import collate_line
from fac_lightning.prompts import ChatFormat
from fac_lightning.types import IGNORE, AnswerSums, PreferenceBatch, SpeechTextBatch, bos_code

__all__ = ["AnswerRow", "PairCollator", "PairRows", "split_row", "weigh_answer"]


@dataclass(frozen=True, eq=False)
class AnswerRow:
    """A row whose last turn is an answer."""

    row: Row
    start: int  # first position whose label belongs to the answer: the last one of its opening
    text_weights: np.ndarray  # (N,) float32
    speech_weights: np.ndarray  # (H, k, Q) float32

    def split(self, place: int) -> tuple[AnswerRow, AnswerRow]:
        """The positions before ``place`` and those from it on; no clip and no reply lies on both sides."""
        first, second = split_row(self.row, place)
        said = len(first.speech_labels)
        return (
            AnswerRow(first, self.start, self.text_weights[:place], self.speech_weights[:said]),
            AnswerRow(second, self.start - place, self.text_weights[place:], self.speech_weights[said:]),
        )


@dataclass(frozen=True, eq=False)
class PairRows:
    """Both answers of a pair; packing keeps them in one line."""

    id: str
    task: int  # into the names of the tasks
    weight: float
    chosen: AnswerRow
    rejected: AnswerRow
    share_prompt: bool = False  # put the prompt into the line once, both answers continue it

    @cached_property
    def parts(self) -> tuple[AnswerRow, ...]:
        """What is put into a line: chosen and rejected; or the prompt they share, then what each has of its own."""
        if not self.share_prompt:
            return self.chosen, self.rejected
        start = self.chosen.start
        prompt, _ = self.chosen.split(start)
        return prompt, self.chosen.split(start)[1], self.rejected.split(start)[1]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the parts."""
        return tuple(part.row for part in self.parts)

    @cached_property
    def cost(self) -> Cost:
        """What it takes of a line."""
        positions, seconds, tokens = zip(*(row.cost for row in self.rows), strict=True)
        return Cost(sum(positions), sum(seconds), sum(tokens))

    def __len__(self) -> int:
        """Positions."""
        return sum(map(len, self.rows))

    @property
    def digest(self) -> str:
        """Hash of all that makes the pair's log-probabilities but the model and the sound of the user's speech."""
        found = blake2b(self.id.encode(), digest_size=16)
        for answer in (self.chosen, self.rejected):
            row = answer.row
            samples = np.array([clip.num_samples for clip in row.clips], dtype=np.int64)
            for values in (
                row.text_ids, row.text_labels, row.codes, row.code_positions, row.speech_positions, row.speech_labels,
                row.feature_positions, samples, answer.text_weights, answer.speech_weights,
            ):  # fmt: skip
                found.update(f"|{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        return found.hexdigest()


def weigh_answer(row: Row, chat: ChatFormat, codebook_size: int, sil_weight: float) -> AnswerRow:
    """Weigh the labels of a row: 1 in its last turn, which is the answer, and 0 before it.

    Of the ``<|sil|>`` tokens that follow the words, the first says where they end and the others nothing, but there
    are several a second: they weigh ``sil_weight``. A lead-in of ``bos`` codes is the same in every answer: 0.

    Args:
        row: Laid out from the prompt's turns and the answer.
        chat: Token ids.
        codebook_size: Real codes.
        sil_weight: Weight of silent text from the second token on.
    """
    opening = chat.assistant_open()
    start = int(np.flatnonzero(row.text_ids == opening[0])[-1]) + len(opening) - 1
    learned = (row.text_labels != IGNORE) & (np.arange(len(row)) >= start)
    silent = learned & (row.text_labels == chat.sil)
    text = learned.astype(np.float32)
    text[silent & (silent.cumsum() > 1)] = sil_weight
    said = (row.speech_labels != IGNORE) & (row.speech_labels != bos_code(codebook_size))
    speech = said & (row.speech_positions >= start)[:, None, None]
    return AnswerRow(row, start, text, speech.astype(np.float32))


@dataclass(frozen=True, eq=False)
class PairCollator:
    """Makes packed lines of pairs, row after row; the clips are read here."""

    task_names: tuple[str, ...]  # what the pairs' tasks count in
    capacity: int  # positions that a line could hold
    sample_rate: int  # Hz of the clips; 0 where there is no speech
    reference: Callable[[Sequence[PairRows]], AnswerSums] | None = None  # stored log-probabilities

    def __call__(self, pairs: Sequence[PairRows]) -> PreferenceBatch:
        """The line of ``pairs``, at least one."""
        parts = [part for pair in pairs for part in pair.parts]
        line = collate_line([part.row for part in parts], self.capacity, self.sample_rate)
        if any(pair.share_prompt for pair in pairs):
            line = _continued(line, pairs)
        count = len(pairs)
        # a shared prompt is counted to the chosen answer, to no effect: its labels weigh nothing
        numbers = np.concatenate([([i] if p.share_prompt else []) + [i, count + i] for i, p in enumerate(pairs)])
        tasks = torch.tensor([pair.task for pair in pairs], dtype=torch.int64)
        return PreferenceBatch(
            line=line,
            text_answers=_repeated(numbers, [len(part.row) for part in parts]),
            text_weights=torch.from_numpy(np.concatenate([part.text_weights for part in parts])),
            speech_answers=_repeated(numbers, [len(part.speech_weights) for part in parts]),
            speech_weights=torch.from_numpy(np.concatenate([part.speech_weights for part in parts])),
            tasks=tasks,
            weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
            task_totals=tasks.bincount(minlength=len(self.task_names)),
            task_names=self.task_names,
            reference=None if self.reference is None else self.reference(pairs),
            ids=tuple(pair.id for pair in pairs),
        )


def split_row(row: Row, place: int) -> tuple[Row, Row]:
    """A row in two; positions of the second count from 0. No clip and no reply may lie on both sides of ``place``."""
    coded, said = (int((x < place).sum()) for x in (row.code_positions, row.speech_positions))
    replies = int((row.reply_lengths.cumsum() <= said).sum())
    assert row.reply_lengths[:replies].sum() == said, "a reply lies on both sides"
    assert (row.feature_positions < place).all(), "a clip lies behind the place"
    first = replace(
        row,
        text_ids=row.text_ids[:place],
        text_mask=row.text_mask[:place],
        text_labels=row.text_labels[:place],
        codes=row.codes[:coded],
        code_positions=row.code_positions[:coded],
        speech_positions=row.speech_positions[:said],
        speech_labels=row.speech_labels[:said],
        reply_lengths=row.reply_lengths[:replies],
        seconds=row.audio_seconds,
    )
    second = replace(
        row,
        text_ids=row.text_ids[place:],
        text_mask=row.text_mask[place:],
        text_labels=row.text_labels[place:],
        codes=row.codes[coded:],
        code_positions=row.code_positions[coded:] - place,
        speech_positions=row.speech_positions[said:] - place,
        speech_labels=row.speech_labels[said:],
        reply_lengths=row.reply_lengths[replies:],
        feature_positions=row.feature_positions[:0],
        clips=(),
        audio_seconds=0.0,
        seconds=row.seconds - row.audio_seconds,
    )
    return first, second


def _continued(line: SpeechTextBatch, pairs: Sequence[PairRows]) -> SpeechTextBatch:
    """The line of ``pairs`` with the rows that continue a prompt told so, and their positions behind it."""
    parents: list[int] = []
    ahead: list[int] = []
    for pair in pairs:
        here = len(parents)
        parents += [-1, here, here] if pair.share_prompt else [-1, -1]
        ahead += [0, pair.chosen.start, pair.chosen.start] if pair.share_prompt else [0, 0]
    shift = torch.tensor(ahead).repeat_interleave(line.lengths)
    return replace(line, parents=torch.tensor(parents), position_ids=line.position_ids + shift)


def _repeated(numbers: np.ndarray, counts: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.repeat(numbers, counts))
