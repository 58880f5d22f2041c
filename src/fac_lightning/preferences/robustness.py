"""Robustness: the right answer before the one that noise, rooms or networks mislead the model to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

import numpy as np
from rich.console import Console
from rich.progress import track

from fac_lightning.data.dialogue import Dialogue, Turn
from fac_lightning.data.distortions import Distortion, sample_rng
from fac_lightning.preferences.base import LoadRun, PairBuilder
from fac_lightning.preferences.exchanges import first_exchanges
from fac_lightning.preferences.folder import PairFolder
from fac_lightning.preferences.model_answers import ModelAnswers
from fac_lightning.wer import normalize_english, word_error_rate

__all__ = ["RobustnessPairs"]

CHUNK = 16  # dialogues in memory where no model asks for another number


@dataclass(frozen=True)
class RobustnessPairs(PairBuilder):
    """Distort the first question of every dialogue; its own answer is chosen, a wrong one rejected.

    The rejected answer is the model's to the distorted question, where it is wrong; questions that it understands all
    the same give no pair. Without a model all have the same ``wrong_answer``. The distorted question is the pair's
    prompt, sample for sample as the model heard it. What happens to it depends on ``seed`` and its dialogue's id alone.

    Args:
        dialogues: Folder of dialogues that begin with a spoken question and its answer.
        distortion: What happens to the questions.
        out: Folder of the pairs.
        answers: How a run answers; None takes ``wrong_answer``.
        wrong_answer: What is rejected where no model answers; it may be empty.
        min_wer: An answer is wrong when it has more word errors than this against the right one, per word.
        limit: Dialogues, spread over the folder; all when None.
        seed: Of distortions and sampling.
        task: Family of the pairs.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    measure: ClassVar[str] = "word error rate of the answer against the right one, lower is better"

    dialogues: str
    distortion: Distortion
    out: str
    answers: ModelAnswers | None = None
    wrong_answer: str | None = None
    min_wer: float = 0.0
    limit: int | None = None
    seed: int = 0
    task: str = "robustness"
    load_run: LoadRun | None = None

    def __post_init__(self) -> None:
        """Refuse what rejects nothing or hears nothing."""
        if (self.answers is None) == (self.wrong_answer is None):
            raise ValueError("give either answers (a model's are rejected where they are wrong) or wrong_answer")
        if self.answers is not None and not self.answers.hears:
            raise ValueError(
                f"questions are distorted as sound, but mode {self.answers.mode} reads them; take S2M or S2T"
            )

    def build(self, folder: PairFolder, load_run: LoadRun | None) -> None:
        """Distort, answer, compare."""
        talker = None if self.answers is None else self.answers.talker(load_run, self.seed)
        chunk_size = CHUNK if self.answers is None else self.answers.batch_size
        done = 0
        questions = self._questions(folder)
        chunks = iter(lambda: list(islice(questions, chunk_size)), [])
        for chunk in track(chunks, "distorting", console=Console(stderr=True), total=None, transient=True):
            if talker is None:
                rejected = [Turn("assistant", self.wrong_answer or "")] * len(chunk)
            else:
                replies = talker([d.turns[0] for d in chunk], [d.system for d in chunk], done)
                rejected = [talker.turn_of(reply) for reply in replies]
            for place, (dialogue, answer) in enumerate(zip(chunk, rejected, strict=True)):
                self._write(folder, dialogue, answer, self.seed + done + place)
            done += len(chunk)
        folder.tell(distortion=repr(self.distortion))

    def _questions(self, folder: PairFolder) -> Iterator[Dialogue]:
        """First exchanges whose question was spoken and is now distorted."""
        for dialogue in first_exchanges(self.dialogues, self.limit, folder.leave_out):
            question, answer = dialogue.turns
            if question.audio is None or question.sample_rate is None:
                folder.leave_out("question that is not spoken")
            elif not normalize_english(answer.text):
                folder.leave_out("right answer without words")
            else:
                rng = sample_rng(self.seed, dialogue.id)
                audio = _as_stored(self.distortion(question.audio, question.sample_rate, rng))
                yield replace(dialogue, turns=(replace(question, audio=audio), answer))

    def _write(self, folder: PairFolder, dialogue: Dialogue, rejected: Turn, seed: int) -> None:
        question, right = dialogue.turns
        wer = word_error_rate([right.text], [rejected.text])
        if wer <= self.min_wer:
            folder.leave_out("understood all the same" if wer == 0 else f"word error rate of {self.min_wer:g} or less")
            return
        mode = None if self.answers is None else self.answers.mode
        custom = {"of": dialogue.id, "seed": self.seed, "answer_seed": None if self.answers is None else seed}
        folder.write(dialogue.id, (question,), right, rejected, (0.0, wer), dialogue.system, mode, custom)


def _as_stored(audio: np.ndarray) -> np.ndarray:
    """Samples as 16 bits hold them."""
    return np.round(audio * 32768).astype(np.float32) / 32768
