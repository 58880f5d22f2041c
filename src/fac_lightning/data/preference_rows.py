"""The rows of a pair of answers, and how much each of their labels counts.

Legend: N positions of a row, H groups to say, k frames per group, Q codebooks, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from fac_lightning.data.layout import Row
from fac_lightning.data.packing import collate_line
from fac_lightning.prompts import ChatFormat
from fac_lightning.types import IGNORE, AnswerSums, PreferenceBatch, bos_code

__all__ = ["AnswerRow", "PairCollator", "PairRows", "weigh_answer"]


@dataclass(frozen=True, eq=False)
class AnswerRow:
    """A row whose last turn is an answer."""

    row: Row
    start: int  # first position whose label belongs to the answer: the last one of its opening
    text_weights: np.ndarray  # (N,) float32
    speech_weights: np.ndarray  # (H, k, Q) float32


@dataclass(frozen=True, eq=False)
class PairRows:
    """Both answers of a pair; packing keeps them in one line."""

    id: str
    task: int  # into the names of the tasks
    weight: float
    chosen: AnswerRow
    rejected: AnswerRow

    @property
    def rows(self) -> tuple[Row, Row]:
        """Chosen and rejected."""
        return self.chosen.row, self.rejected.row

    @property
    def audio_seconds(self) -> float:
        """Users' speech of the line that the pair takes."""
        return sum(row.audio_seconds for row in self.rows)

    @property
    def speech_labels(self) -> np.ndarray:
        """Groups to say of both ``(H, k, Q)``."""
        return np.concatenate([row.speech_labels for row in self.rows])

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
        line = collate_line([row for pair in pairs for row in pair.rows], self.capacity, self.sample_rate)
        answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
        numbers = np.arange(2 * len(pairs)).reshape(2, -1).T.flatten()  # chosen, rejected, chosen ...
        tasks = torch.tensor([pair.task for pair in pairs], dtype=torch.int64)
        return PreferenceBatch(
            line=line,
            text_answers=_repeated(numbers, [len(answer.row) for answer in answers]),
            text_weights=torch.from_numpy(np.concatenate([answer.text_weights for answer in answers])),
            speech_answers=_repeated(numbers, [len(answer.speech_weights) for answer in answers]),
            speech_weights=torch.from_numpy(np.concatenate([answer.speech_weights for answer in answers])),
            tasks=tasks,
            weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
            task_totals=tasks.bincount(minlength=len(self.task_names)),
            task_names=self.task_names,
            reference=None if self.reference is None else self.reference(pairs),
            ids=tuple(pair.id for pair in pairs),
        )


def _repeated(numbers: np.ndarray, counts: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.repeat(numbers, counts))
