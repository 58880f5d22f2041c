"""Answers of a trained run: how it is asked, and the talker that asks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fac_lightning.data.codes import tokenizer_fingerprint
from fac_lightning.data.dialogue import Turn
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.generation import Decoding, Generator, Reply, Sampling, UserTurn
from fac_lightning.preferences.base import LoadRun
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.resampling import resample

__all__ = ["ModelAnswers", "Talker"]

PAIR_MODES = ("S2M", "S2T", "T2M", "T2T")  # those in which pairs are laid out


@dataclass(frozen=True)
class ModelAnswers:
    """How a trained run answers.

    Args:
        run: Folder of the run.
        mode: S2M, S2T, T2M or T2T.
        text: Sampling of the text; greedy when None.
        speech: Sampling of the speech; greedy when None.
        max_positions: Longest answer in backbone positions.
        batch_size: Answers made together; it changes none of them.
    """

    run: str
    mode: str = "S2M"
    text: Sampling | None = None
    speech: Sampling | None = None
    max_positions: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse modes that no pair has."""
        if self.mode not in PAIR_MODES:
            raise ValueError(f"pairs are made in the modes {', '.join(PAIR_MODES)}, not in {self.mode!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def hears(self) -> bool:
        """The questions are heard, not read."""
        return MODES[self.mode][0]

    @property
    def speaks(self) -> bool:
        """The answers are spoken."""
        return MODES[self.mode][1]

    @property
    def greedy(self) -> bool:
        """Nothing is sampled, so that a question has one answer."""
        texts = self.text is None or self.text.temperature == 0
        return texts and (not self.speaks or self.speech is None or self.speech.temperature == 0)

    def talker(self, load_run: LoadRun | None, seed: int = 0) -> Talker:
        """The run, loaded; its answer ``i`` draws from ``seed + i``.

        Raises:
            ValueError: There is no way to load it, or it cannot talk.
        """
        if load_run is None:
            raise ValueError(
                f"answers of {self.run} need load_run: `fac pairs` and `fac run` pass it, from Python give "
                "fac_lightning.cli.load_run"
            )
        return Talker(self, load_run(self.run), seed)


class Talker:
    """A loaded run that answers many questions.

    Args:
        answers: How.
        loaded: What ``load_run`` gave.
        seed: Of the sampling.
    """

    def __init__(self, answers: ModelAnswers, loaded: Any, seed: int = 0) -> None:
        for what, part in (("text", loaded.text_tokenizer), ("speech", loaded.tokenizer)):
            if part is None and (what == "text" or answers.speaks):
                raise ValueError(f"{answers.run} has no {what} tokenizer, so it cannot answer in mode {answers.mode}")
        self.answers, self.seed = answers, seed
        self._loaded, self._chat = loaded, ChatFormat(loaded.text_tokenizer)
        self._tokenizer = loaded.tokenizer if answers.speaks else None
        self._codes_name = ""
        if self._tokenizer is not None:
            self._codes_name = self._tokenizer.codes_name or tokenizer_fingerprint(self._tokenizer)

    def understands(self, turn: Turn) -> bool:
        """Whether a user turn has what the mode hears or reads."""
        return turn.audio is not None and len(turn.audio) > 0 if self.answers.hears else bool(turn.text)

    def __call__(self, turns: Sequence[Turn], systems: Sequence[str | None], first: int = 0) -> list[Reply]:
        """A reply to each user turn.

        Args:
            turns: The user's.
            systems: System prompt of each; that of the run's mode where None.
            first: Place of the first one in the whole work: it decides what each draws.
        """
        replies: list[Reply] = []
        for system, batch in self._batches(turns, systems):
            seed = self.seed + first + len(replies)
            decoding = Decoding(
                self.answers.text or Sampling(), self.answers.speech or Sampling(), self.answers.max_positions, seed
            )
            replies += self._generator(system).generate([self._asked(t) for t in batch], self.answers.mode, decoding)
        return replies

    def turn_of(self, reply: Reply) -> Turn:
        """The assistant's turn that a reply is, in the very codes that were said."""
        if reply.codes is None or not len(reply.codes):
            return Turn("assistant", reply.text)
        assert self._tokenizer is not None
        return Turn(
            "assistant",
            reply.text,
            codes=TurnCodes(self._codes_name, reply.codes.numpy(), self._tokenizer.frame_rate),
            custom={"finished": reply.finished},
        )

    def _asked(self, turn: Turn) -> UserTurn:
        if not self.answers.hears:
            return UserTurn(text=turn.text)
        assert turn.audio is not None
        assert turn.sample_rate is not None
        return UserTurn(audio=resample(turn.audio, turn.sample_rate, self._loaded.model.geometry.sample_rate))

    def _batches(
        self, turns: Sequence[Turn], systems: Sequence[str | None]
    ) -> Iterator[tuple[str | None, Sequence[Turn]]]:
        """Turns in order, those of a batch under one system prompt."""
        start = 0
        for system, alike in groupby(systems):
            end = start + len(list(alike))
            for first in range(start, end, self.answers.batch_size):
                yield system, turns[first : min(first + self.answers.batch_size, end)]
            start = end

    def _generator(self, system: str | None) -> Generator:
        prompts: dict[str, str] = dict(self._loaded.data.get("system_prompts") or {})
        if system is not None:
            prompts[self.answers.mode] = system
        return Generator(
            self._loaded.model,
            self._chat,
            tokenizer=self._tokenizer,
            system_prompts=prompts,
            reply=self._loaded.reply,
        )
