"""``PreferenceDataModule``: pairs of answers on disk become packed lines for preference training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.mixing import mixing_shares
from fac_lightning.data.packed_module import PackedDataModule
from fac_lightning.data.packing import pack_lines
from fac_lightning.data.part_text import part_text
from fac_lightning.data.preference_corpus import PairCorpus
from fac_lightning.data.preference_rows import PairCollator
from fac_lightning.data.preference_stream import FixedPairs, PairStream, plan_pairs
from fac_lightning.data.reference_store import ReferenceStore
from fac_lightning.data.stream import StreamPlace, fill
from fac_lightning.replies import ReplyRule, reply_rule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import AnswerSums, PreferenceBatch, SpeechGeometry

__all__ = ["PreferenceDataModule"]

log = logging.getLogger(__name__)

MAX_LEFT_OUT = 0.05  # share of pairs that may fit no line before setup refuses


class PreferenceDataModule(PackedDataModule):
    """Pairs of a chosen and a rejected answer, packed without padding.

    Training is one endless stream (set ``max_steps``), seeded: a task is drawn, then its next pair, shuffled anew
    every time round. It is dealt out over ranks; any number of workers gives the same lines. A resumed run goes on
    behind the last step it made.
    Validation is one pass in fixed order.

    Args:
        train: Folder of preference pairs (``pairs.jsonl``), or several.
        text_tokenizer: Hub id or folder of the text tokenizer.
        val: Pairs for validation.
        tokenizer: Speech tokenizer; needed by the modes that say speech.
        geometry: ``SpeechLM.geometry``; needed by every mode but T2T.
        mode: How prompts and answers are laid out where a pair does not say: S2M, S2T, T2M or T2T. Pairs without
            speech on a side fall back to text on it.
        temperature: Tasks are drawn by ``pairs ** (1 / temperature)``: 1 by size, more evens them.
        reference: Folder or file of stored log-probabilities (``ReferenceLogprobs``); they come with every batch.
        capacity: Positions of a line.
        max_audio_seconds: Users' speech that a line may hold; no limit when None.
        max_speech_tokens: Frames of codes to say that a line may hold; no limit when None.
        lead_in: Groups of ``bos`` codes before a reply: short for ``reply=FrameEnd(lead_in)``.
        reply: How spoken replies lie in backbone positions; give this or ``lead_in``.
        sil_weight: Weight of the ``<|sil|>`` labels behind an answer's words, from the second on. There are several a
            second, and a log-probability that counts them all is one of silence.
        share_prompt: Put the prompt of a pair into the line once, with both answers behind it that do not see each
            other: the same log-probabilities for less work. Not for heads that read whole rows (``FunAudioHead``).
        system_prompts: Prompt per mode, where it is to differ. A dialogue's own prompt comes first.
        seed: Order and tasks.
        num_workers: Processes that lay out and read; 0 does it in the training process. The lines are the same.
        val_lines: Use only the first lines of validation.
        look_ahead: Lines kept open while packing.
        cache_audio: Keep the users' waveforms in memory once read.
        virtual_epoch: Optimizer steps behind which the lines that are still open are given out: a run that goes on
            plans at most so many again. None plans from the beginning.
        resume_changed: ``refuse`` to go on with other data than those of the checkpoint, or ``continue`` and warn.
        max_bad_share: Share of dialogues that may be bad before setup refuses, and of pairs whose audio turns out to be
            unreadable before the run stops; up to it they are left out and counted.
        limits: What is accepted of manifests and audio, such as ``roots``; see ``IntakeLimits``.
    """

    batch_type = PreferenceBatch

    def __init__(
        self,
        train: str | list[str],
        text_tokenizer: str,
        val: str | None = None,
        tokenizer: SpeechTokenizer | None = None,
        geometry: SpeechGeometry | None = None,
        mode: str = "S2M",
        temperature: float = 1.0,
        reference: str | None = None,
        capacity: int = 2048,
        max_audio_seconds: float | None = None,
        max_speech_tokens: int | None = None,
        lead_in: int = 0,
        reply: ReplyRule | None = None,
        sil_weight: float = 0.0,
        share_prompt: bool = False,
        system_prompts: dict[str, str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        val_lines: int | None = None,
        look_ahead: int = 16,
        cache_audio: bool = True,
        virtual_epoch: int | None = None,
        resume_changed: Literal["refuse", "continue"] = "refuse",
        max_bad_share: float = 0.01,
        limits: IntakeLimits | None = None,
    ) -> None:
        super().__init__(
            text_tokenizer,
            capacity,
            max_audio_seconds,
            max_speech_tokens,
            look_ahead,
            seed,
            num_workers,
            validates=val is not None,
            virtual_epoch=virtual_epoch,
            resume_changed=resume_changed,
            max_bad_share=max_bad_share,
        )
        self.train_paths = [train] if isinstance(train, str) else list(train)
        self.val_path, self.tokenizer, self.geometry = val, tokenizer, geometry
        self.mode, self.temperature, self.reference = mode, temperature, reference
        self.reply, self.sil_weight, self.share_prompt = reply_rule(lead_in, reply), sil_weight, share_prompt
        self.system_prompts, self.val_lines = system_prompts, val_lines
        self.cache_audio, self.limits = cache_audio, limits
        self._reply_text = part_text(self.reply, "data.reply")
        self.train_corpus: PairCorpus | None = None
        self.val_corpus: PairCorpus | None = None
        self._stored: ReferenceStore | None = None

    def setup(self, stage: str) -> None:
        """Read the manifests; count, log and, above a share, refuse pairs that fit no line.

        Raises:
            ValueError: Too many pairs fit no line, or a pair has no stored reference.
        """
        if self._stored is None and self.reference is not None:
            self._stored = ReferenceStore(self.reference)
        if self.train_corpus is None:
            self.train_corpus = self._corpus(self.train_paths)
            self.tally.tags = dict.fromkeys(self.train_corpus.task_names, ())
        if self.val_corpus is None and self.val_path is not None:
            self.val_corpus = self._corpus([self.val_path])

    def val_dataloader(self) -> Any:
        """Loader of one pass over the validation lines."""
        assert self.val_corpus is not None
        collate = self._collator(self.val_corpus)
        return FixedPairs(self.val_corpus, collate, self.budget, self.look_ahead, self.val_lines, *self._shard())

    def every_pair(self) -> Iterator[PreferenceBatch]:
        """All pairs of training and validation once, in packed lines."""
        for lines in self._all_lines():
            yield from lines

    def save_reference(self, path: str | Path, sums: AnswerSums) -> Path:
        """Store log-probabilities ``(2, P)`` of all pairs, in the order of ``every_pair``; returns the file."""
        pairs = [pair for lines in self._all_lines() for line in lines.lines for pair in line]
        return ReferenceStore.save(path, pairs, sums)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Per split: pairs and share of each task, mean fill of the lines."""
        self.setup("describe")
        report: dict[str, dict[str, Any]] = {}
        for name, corpus in (("train", self.train_corpus), ("val", self.val_corpus)):
            if corpus is None:
                continue
            counts = corpus.describe()
            shares = mixing_shares(list(counts.values()), self.temperature if name == "train" else 1.0)
            plans = plan_pairs(corpus, self.budget, self.seed, self.temperature)
            lines = islice(pack_lines(plans, self.budget, self.look_ahead), 16)
            report[name] = {
                "pairs": counts,
                "shares": dict(zip(counts, shares.round(4).tolist(), strict=True)),
                "fill": fill(lines, self.budget),
            }
        return report

    def _stream(
        self, window: int = 1, shard: int = 0, num_shards: int = 1, start: StreamPlace | None = None
    ) -> PairStream:
        corpus = self.train_corpus
        assert corpus is not None
        return PairStream(
            corpus,
            self._collator(corpus),
            self.budget,
            self.seed,
            self.temperature,
            window,
            self.look_ahead,
            shard,
            num_shards,
            start,
            self.virtual_epoch,
        )

    def _stream_settings(self) -> dict[str, Any]:
        return {
            "content": self.train_corpus.fingerprint() if self.train_corpus is not None else None,
            "mode": self.mode,
            "temperature": self.temperature,
            "reply": self._reply_text,
            "system_prompts": self.system_prompts,
            "sil_weight": self.sil_weight,
            "share_prompt": self.share_prompt,
            **self._shared_settings(),
        }

    def _all_lines(self) -> list[FixedPairs]:
        corpora = [corpus for corpus in (self.train_corpus, self.val_corpus) if corpus is not None]
        return [FixedPairs(corpus, self._collator(corpus), self.budget, self.look_ahead) for corpus in corpora]

    def _collator(self, corpus: PairCorpus) -> PairCollator:
        rate = self.geometry.sample_rate if self.geometry else 0
        return PairCollator(corpus.task_names, self.budget.positions, rate, self._stored)

    def _corpus(self, paths: list[str]) -> PairCorpus:
        corpus = PairCorpus(
            paths,
            self.chat,
            self.geometry,
            self.tokenizer,
            self.mode,
            self.system_prompts,
            self.reply,
            self.sil_weight,
            self.share_prompt,
            self.cache_audio,
            limits=self.limits,
            max_bad_share=self.tally.max_bad_share,
        )
        taken = [self.budget.takes(corpus.cost(i)) for i in range(len(corpus))]
        if long := taken.count(False):
            message = f"{long} of {len(taken)} pairs in {', '.join(paths)} do not fit a line of {self.budget}"
            if long > MAX_LEFT_OUT * len(taken):
                raise ValueError(f"{message}. Raise capacity, max_audio_seconds or max_speech_tokens")
            log.warning("%s and are left out", message)
        if self._stored is not None:
            self._stored([corpus.pair(i) for i, fits in enumerate(taken) if fits])  # says which is missing
        return corpus
