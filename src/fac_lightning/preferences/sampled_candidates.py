"""Candidates that the model says itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from rich.console import Console
from rich.progress import track

from fac_lightning.data.dialogue import Dialogue
from fac_lightning.generation import Reply
from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.exchanges import first_exchanges
from fac_lightning.preferences.model_answers import ModelAnswers, Talker

__all__ = ["SampledCandidates"]


@dataclass(frozen=True)
class SampledCandidates(CandidateSource):
    """Several answers of a trained run to the first question of every dialogue.

    With greedy text and sampled speech the answers to a question say the same in other sounds. They are kept as the
    codes that were said. The same seed gives the same answers.

    Args:
        dialogues: Folder of dialogues that begin with a question and an answer; the answer is the group's reference.
        answers: How the run answers; its text or its speech is sampled.
        num_samples: Answers per question.
        limit: Dialogues, spread over the folder; all when None.
        seed: Of the sampling.
    """

    dialogues: str
    answers: ModelAnswers
    num_samples: int = 4
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what gives nothing to choose from."""
        if self.num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, got {self.num_samples}: one answer has no rival")
        if self.answers.greedy:
            raise ValueError(
                f"in mode {self.answers.mode} all {self.num_samples} answers would be the same, for nothing is "
                "sampled: give answers.speech or answers.text a fac_lightning.generation.Sampling with a temperature"
            )

    def groups(self, load_run: LoadRun | None, leave_out: Callable[[str], None]) -> Iterator[CandidateGroup]:
        """One group per dialogue."""
        talker = self.answers.talker(load_run, self.seed)
        dialogues = first_exchanges(self.dialogues, self.limit, leave_out)
        chunk_size = max(1, self.answers.batch_size // self.num_samples)
        chunks = iter(lambda: list(islice(dialogues, chunk_size)), [])
        done = 0
        for chunk in track(chunks, "answering", console=Console(stderr=True), total=None, transient=True):
            asked = [dialogue for dialogue in chunk if talker.understands(dialogue.turns[0])]
            for _ in range(len(chunk) - len(asked)):
                leave_out(f"question that is not {'spoken' if self.answers.hears else 'written'}")
            rows = [dialogue for dialogue in asked for _ in range(self.num_samples)]
            replies = talker([d.turns[0] for d in rows], [d.system for d in rows], done)
            for dialogue in asked:
                mine = replies[: self.num_samples]
                del replies[: self.num_samples]
                seeds = range(self.seed + done, self.seed + done + self.num_samples)
                yield self._group(dialogue, [_candidate(talker, r, s) for r, s in zip(mine, seeds, strict=True)])
                done += self.num_samples

    def _group(self, dialogue: Dialogue, candidates: list[Candidate]) -> CandidateGroup:
        question, answer = dialogue.turns
        custom = {**dialogue.custom, **question.custom}
        mode = self.answers.mode
        return CandidateGroup(dialogue.id, (question,), tuple(candidates), answer, dialogue.system, mode, custom)


def _candidate(talker: Talker, reply: Reply, seed: int) -> Candidate:
    audio = None if reply.audio is None or not len(reply.audio) else reply.audio.float().numpy()
    return Candidate(talker.turn_of(reply), audio, reply.sample_rate, reply.finished, {"seed": seed})
