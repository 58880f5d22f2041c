"""``SpeechChatDataModule``: dialogues on disk become packed lines for training and validation."""

from __future__ import annotations

import logging
import math
from collections import Counter
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from fac_lightning.data.corpus import Corpus
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.data.packed_module import PackedDataModule
from fac_lightning.data.packing import pack_lines
from fac_lightning.data.stream import FixedLines, LineStream, stream_rows
from fac_lightning.replies import ReplyRule, reply_rule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry, SpeechTextBatch

__all__ = ["SpeechChatDataModule"]

log = logging.getLogger(__name__)

MAX_LEFT_OUT = 0.05  # share of dialogues that may fit no line before setup refuses
MAX_COUNTED = 20_000  # dialogues laid out beforehand to count those left out


class SpeechChatDataModule(PackedDataModule):
    """Spoken and written dialogues, packed without padding.

    Training is one endless stream (set ``max_steps``), seeded, shuffled anew every epoch, and split over ranks and
    workers. Each dialogue is laid out in a mode drawn by weight; weights may change by a schedule. A resumed run goes
    on behind the last line it saw. Validation is one pass in fixed order.

    Args:
        train: Dialogues folder or manifest, or several.
        text_tokenizer: Hub id or folder of the text tokenizer.
        val: Dialogues for validation.
        tokenizer: Speech tokenizer; needed by the modes that say speech.
        geometry: ``SpeechLM.geometry``; needed by every mode but T2T.
        modes: Weight per mode (``prompts.MODES``); all S2M when None. Dialogues without speech on a side fall back to
            text on it (``fit_mode``).
        capacity: Positions of a line.
        max_audio_seconds: Users' speech that a line may hold; no limit when None.
        max_speech_tokens: Frames of codes to say that a line may hold; no limit when None.
        lead_in: Groups of ``bos`` codes before a reply: short for ``reply=FrameEnd(lead_in)``.
        system_prompts: Prompt per mode, where it is to differ. A dialogue's own prompt comes first.
        seed: Order and modes.
        num_workers: Processes that lay out and pack; 0 does it in the training process.
        val_lines: Use only the first lines of validation.
        look_ahead: Lines kept open while packing.
        cache_audio: Keep the users' waveforms in memory once read.
        reply: How spoken replies lie in backbone positions; give this or ``lead_in``.
        mode_schedule: How the weights of ``modes`` change while training goes on (``LinearModes``); constant when None.
            Validation takes the weights that it ends with.
    """

    batch_type = SpeechTextBatch
    unit = "dialogues"

    def __init__(
        self,
        train: str | list[str],
        text_tokenizer: str,
        val: str | None = None,
        tokenizer: SpeechTokenizer | None = None,
        geometry: SpeechGeometry | None = None,
        modes: dict[str, float] | None = None,
        capacity: int = 2048,
        max_audio_seconds: float | None = None,
        max_speech_tokens: int | None = None,
        lead_in: int = 0,
        system_prompts: dict[str, str] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        val_lines: int | None = None,
        look_ahead: int = 64,
        cache_audio: bool = True,
        reply: ReplyRule | None = None,
        mode_schedule: ModeSchedule | None = None,
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
        )
        self.train_paths = [train] if isinstance(train, str) else list(train)
        self.val_path, self.tokenizer, self.geometry = val, tokenizer, geometry
        self.modes = dict(modes) if modes else {"S2M": 1.0}
        self.mode_schedule = mode_schedule
        self.reply, self.system_prompts = reply_rule(lead_in, reply), system_prompts
        self.val_lines, self.cache_audio = val_lines, cache_audio
        self.train_corpus: Corpus | None = None
        self.val_corpus: Corpus | None = None

    def setup(self, stage: str) -> None:
        """Read the manifests; count, log and, above a share, refuse dialogues that fit no line."""
        if self.train_corpus is None:
            places = (0.0,) if self.mode_schedule is None else (0.0, math.inf)
            self.train_corpus = self._corpus(self.train_paths, places)
        if self.val_corpus is None and self.val_path is not None:
            self.val_corpus = self._corpus([self.val_path], (math.inf,))

    def val_dataloader(self) -> Any:
        """Loader of one pass over the validation lines."""
        assert self.val_corpus is not None
        shard, shards = self._shard()
        return FixedLines(self.val_corpus, self.budget, self.seed, self.look_ahead, self.val_lines, shard, shards)

    def _stream(self, window: int, shard: int, num_shards: int, skip: int) -> LineStream:
        assert self.train_corpus is not None
        return LineStream(self.train_corpus, self.budget, self.seed, window, self.look_ahead, shard, num_shards, skip)

    def _stream_settings(self) -> dict[str, Any]:
        items = self.train_corpus.items if self.train_corpus is not None else []
        names = blake2b("\n".join(item.id for item in items).encode(), digest_size=8).hexdigest()
        schedule = self.mode_schedule
        return {
            "dialogues": names,
            "modes": self.modes if schedule is None else f"{self.modes} by {schedule}",
            "reply": str(self.reply),
            **self._shared_settings(),
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Counts per split: dialogues, turns, hours, rows of each mode in one epoch, mean fill of the lines.

        With a schedule of modes the rows of training are those of the start, and ``rows_at_end`` are those of the end.
        """
        self.setup("describe")
        report: dict[str, dict[str, Any]] = {}
        for name, corpus in (("train", self.train_corpus), ("val", self.val_corpus)):
            if corpus is None:
                continue
            modes = self._count_modes(corpus, 0.0 if name == "train" else math.inf)
            if name == "train":
                lines = list(islice(pack_lines(stream_rows(corpus, self.budget, self.seed), self.budget, 64), 32))
            else:
                lines = FixedLines(corpus, self.budget, self.seed, self.look_ahead, self.val_lines).lines
            fill = float(np.mean([sum(len(row) for row in line) for line in lines])) / self.budget.positions
            report[name] = {**corpus.describe(), "rows": modes, "fill": fill}
            if name == "train" and self.mode_schedule is not None:
                report[name]["rows_at_end"] = self._count_modes(corpus, math.inf)
        return report

    def _count_modes(self, corpus: Corpus, place: float) -> dict[str, int]:
        """Rows of each mode in one epoch with the weights of a place in the schedule."""
        modes = Counter(corpus.draw_mode(item, self.seed, 0, place) or "none" for item in corpus.items)
        return dict(sorted(modes.items()))

    def _corpus(self, paths: list[str], places: tuple[float, ...]) -> Corpus:
        """The dialogues of ``paths``, checked with the weights that modes have at ``places`` of the schedule."""
        corpus = Corpus(
            paths,
            self.chat,
            self.geometry,
            self.tokenizer,
            self.modes,
            self.system_prompts,
            self.reply,
            self.cache_audio,
            mode_schedule=self.mode_schedule,
        )
        for place in places:
            self._check(corpus, paths, place)
        return corpus

    def _check(self, corpus: Corpus, paths: list[str], place: float) -> None:
        """Count and log what is left out and cut; refuse more than ``MAX_LEFT_OUT``."""
        rows = [corpus.row(i, self.seed, 0, place) for i in range(min(len(corpus), MAX_COUNTED))]
        unserved = sum(row is None for row in rows)
        long = sum(row is not None and not self.budget.fits(row) for row in rows)
        if unserved or long:
            message = (
                f"{unserved + long} of {len(rows)} dialogues in {', '.join(paths)} are left out: {long} do not fit a "
                f"line of {self.budget}, {unserved} have no speech for the modes {', '.join(corpus.modes)}, "
                "or no text of it where these need that"
            )
            if unserved + long > MAX_LEFT_OUT * len(rows):
                raise ValueError(f"{message}. Raise capacity, max_audio_seconds or max_speech_tokens, or add modes")
            log.warning(message)
        lost = [row.lost_text for row in rows if row is not None and row.lost_text]
        if lost:
            log.warning(
                "%d of %d dialogues in %s have more text than speech has positions for, and %s cuts it: %d text tokens "
                "are not learned. A longer lead-in, or the rule FrameEnd, keeps them.",
                len(lost),
                len(rows),
                ", ".join(paths),
                self.reply,
                sum(lost),
            )
