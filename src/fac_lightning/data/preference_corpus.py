"""A corpus of preference pairs, ready to be laid out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

from fac_lightning.data.corpus import Corpus, CorpusItem
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.layout import Cost, SpokenTurn, fit_mode, lay_out
from fac_lightning.data.preference_pairs import PreferencePair, TurnAnswer, WrittenAnswer, read_pairs
from fac_lightning.data.preference_rows import AnswerRow, PairRows, weigh_answer
from fac_lightning.prompts import SYSTEM_PROMPTS, ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["PairCorpus"]

log = logging.getLogger(__name__)

PAIR_MODES = ("S2M", "S2T", "T2M", "T2T")


class PairCorpus:
    """Pairs in memory: texts and codes; the users' waveforms are read when a line needs them.

    Args:
        paths: Folders or manifests of pairs, one after the other.
        chat: Token ids.
        geometry: Sizes of the model; None for text alone.
        tokenizer: Makes the codes of spoken answers; None where no mode says speech.
        mode: How prompt and answers are laid out, where a pair does not say: S2M, S2T, T2M or T2T.
        system_prompts: Prompts that replace those of the modes.
        reply: How spoken answers lie; ``FrameEnd()`` when None.
        sil_weight: Weight of the ``<|sil|>`` labels behind the words of an answer, from the second on.
        share_prompt: Put the prompt of a pair into the line once; see ``PreferenceDataModule``.
        cache_audio: Keep the users' waveforms as 16-bit integers once they are read.
        progress: Show a bar while codes are made.
        limits: What is accepted of dialogues; see ``Corpus``.
        max_bad_share: Share of bad dialogues above which all are refused; pairs of fewer are left out, see ``bad``.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        chat: ChatFormat,
        geometry: SpeechGeometry | None = None,
        tokenizer: SpeechTokenizer | None = None,
        mode: str = "S2M",
        system_prompts: Mapping[str, str] | None = None,
        reply: ReplyRule | None = None,
        sil_weight: float = 0.0,
        share_prompt: bool = False,
        cache_audio: bool = True,
        progress: bool = True,
        limits: IntakeLimits | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        if not 0 <= sil_weight <= 1:
            raise ValueError(f"sil_weight must lie between 0 and 1, got {sil_weight}")
        self.chat, self.geometry, self.mode, self.reply = chat, geometry, mode, reply
        self.system_prompts, self.sil_weight, self.share_prompt = dict(system_prompts or {}), sil_weight, share_prompt
        self.pairs: list[tuple[Path, PreferencePair]] = [found for path in paths for found in read_pairs(path)]
        if not self.pairs:
            raise ValueError(f"there is no preference pair in {', '.join(map(str, paths))}")
        if twice := [name for name, n in Counter(pair.id for _, pair in self.pairs).items() if n > 1]:
            raise ValueError(f"several pairs have the id {twice[0]!r}; ids must be unique over all folders")
        modes = {mode, *(pair.mode for _, pair in self.pairs if pair.mode is not None)}
        if strange := sorted(modes - set(PAIR_MODES)):
            raise ValueError(f"pairs cannot be laid out in mode {strange[0]!r}; choose from {', '.join(PAIR_MODES)}")
        weights = dict.fromkeys(sorted(modes), 1.0)
        self._items: dict[tuple[Path, str], CorpusItem] = {}
        self.bad: list[BadData] = []  # what is wrong with the dialogues whose pairs are left out
        bad_ids: set[tuple[Path, str]] = set()
        for folder in dict.fromkeys(folder for folder, _ in self.pairs):
            corpus = Corpus(
                [folder],
                chat,
                geometry,
                tokenizer,
                weights,
                self.system_prompts,
                reply,
                cache_audio,
                progress,
                limits=limits,
                max_bad_share=max_bad_share,
            )
            self._items.update({(folder, item.id): item for item in corpus.items})
            self.bad += corpus.bad
            bad_ids.update((folder, name) for name in corpus.bad_ids)
        self._leave_out(bad_ids)
        self._costs: dict[int, Cost] = {}
        self._check()
        self.task_names = tuple(sorted({pair.task for _, pair in self.pairs}))
        self.tasks = np.array([self.task_names.index(pair.task) for _, pair in self.pairs])  # (len(self),)

    def __len__(self) -> int:
        """Pairs."""
        return len(self.pairs)

    def pair(self, index: int) -> PairRows:
        """Pair ``index``, both answers laid out behind the same prompt."""
        folder, pair = self.pairs[index]
        item = self._items[folder, pair.dialogue]
        prompt = item.turns[: pair.turns]
        answers = [self._turn(folder, answer) for answer in (pair.chosen, pair.rejected)]
        mode = fit_mode(pair.mode or self.mode, [*prompt, *answers])
        assert mode is not None  # only ASR and TTS may find nothing
        # one prompt for both, also where only one of the answers is spoken
        system = item.system if item.system is not None else self.system_prompts.get(mode, SYSTEM_PROMPTS[mode])
        chosen, rejected = (
            self._row(f"{pair.id}/{side}", [*prompt, answer], mode, system)
            for side, answer in zip(("chosen", "rejected"), answers, strict=True)
        )
        return PairRows(pair.id, int(self.tasks[index]), pair.weight, chosen, rejected, self.share_prompt)

    def cost(self, index: int) -> Cost:
        """What pair ``index`` takes of a line; laid out once."""
        found = self._costs.get(index)
        if found is None:
            found = self._costs[index] = self.pair(index).cost
        return found

    def fingerprint(self) -> str:
        """Of the pairs and of what their rows are made of."""
        digest = blake2b(digest_size=8)
        for i in range(len(self)):
            digest.update(self.pair(i).digest.encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, int]:
        """Pairs of each task."""
        counts = np.bincount(self.tasks, minlength=len(self.task_names))
        return dict(zip(self.task_names, counts.tolist(), strict=True))

    def _row(self, row_id: str, turns: Sequence[SpokenTurn], mode: str, system: str) -> AnswerRow:
        fitted = fit_mode(mode, turns)
        assert fitted is not None
        row = lay_out(row_id, turns, self.chat, self.geometry, fitted, system=system, reply=self.reply)
        size = self.geometry.codebook_size if self.geometry else 0
        return weigh_answer(row, self.chat, size, self.sil_weight)

    def _turn(self, folder: Path, answer: TurnAnswer | WrittenAnswer) -> SpokenTurn:
        if isinstance(answer, WrittenAnswer):
            return SpokenTurn("assistant", answer.text)
        return self._items[folder, answer.dialogue].turns[answer.turn]

    def _leave_out(self, bad_ids: set[tuple[Path, str]]) -> None:
        """Drop the pairs that use a bad dialogue."""
        kept = [(folder, pair) for folder, pair in self.pairs if not bad_ids & _dialogues_of(folder, pair)]
        if len(kept) < len(self.pairs):
            log.warning(
                "%d of %d pairs use bad dialogues and are left out", len(self.pairs) - len(kept), len(self.pairs)
            )
        if not kept:
            raise ValueError(f"every pair uses a bad dialogue; the first: {self.bad[0]}")
        self.pairs = kept

    def _check(self) -> None:
        """Every name that a pair uses, before training needs it."""
        for folder, pair in self.pairs:
            item = self._items.get((folder, pair.dialogue))
            if item is None or not 0 < pair.turns <= len(item.turns) or item.turns[pair.turns - 1].role != "user":
                held = "no such dialogue" if item is None else f"turns of {[turn.role for turn in item.turns]}"
                raise ValueError(
                    f"pair {pair.id!r}: its prompt is the first {pair.turns} turns of {pair.dialogue!r}, but {folder} "
                    f"has {held}; a prompt ends with a turn of the user"
                )
            if item.unwritten and (pair.mode or self.mode) in ("T2M", "T2T"):
                raise ValueError(
                    f"pair {pair.id!r}: its mode is {pair.mode or self.mode}, but a user turn of dialogue "
                    f"{pair.dialogue!r} is spoken without a text; take S2M or S2T, or write its text"
                )
            for answer in (pair.chosen, pair.rejected):
                if isinstance(answer, TurnAnswer):
                    there = self._items.get((folder, answer.dialogue))
                    roles = [] if there is None else [turn.role for turn in there.turns]
                    if not 0 <= answer.turn < len(roles) or roles[answer.turn] != "assistant":
                        raise ValueError(
                            f"pair {pair.id!r}: turn {answer.turn} of dialogue {answer.dialogue!r} in {folder} is no "
                            f"turn of the assistant (roles: {roles or 'no such dialogue'})"
                        )


def _dialogues_of(folder: Path, pair: PreferencePair) -> set[tuple[Path, str]]:
    """Dialogues that a pair uses."""
    answers = {answer.dialogue for answer in (pair.chosen, pair.rejected) if isinstance(answer, TurnAnswer)}
    return {(folder, name) for name in {pair.dialogue, *answers}}
