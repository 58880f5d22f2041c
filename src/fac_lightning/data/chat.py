"""``SpeechChatDataModule``: dialogues on disk become packed lines for training and validation."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

from torch import nn

from fac_lightning.data.augmentation import Augmentation, AugmentedPlanner, refuse_remembering
from fac_lightning.data.distortions import Distortion
from fac_lightning.data.good_dialogues import limit_bad
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.mixing import DataSource, mixing_shares
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.data.packed_module import PackedDataModule
from fac_lightning.data.part_text import part_text
from fac_lightning.data.row_plans import RowPlanner
from fac_lightning.data.row_source import RowSource
from fac_lightning.data.shards import ShardCorpus, open_source
from fac_lightning.data.shards.features import refuse_other_encoder
from fac_lightning.data.shards.open import holds_shards
from fac_lightning.data.stream import FixedLines, LineStream, StreamPlace, fill, sample_rate
from fac_lightning.replies import ReplyRule, reply_rule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry, SpeechTextBatch

__all__ = ["SpeechChatDataModule"]

log = logging.getLogger(__name__)

MAX_LEFT_OUT = 0.05  # share of dialogues that may fit no line before setup refuses
MAX_COUNTED = 20_000  # dialogues laid out beforehand to count those left out


class SpeechChatDataModule(PackedDataModule):
    """Spoken and written dialogues, packed without padding.

    Training is one endless stream (set ``max_steps``), seeded, every source shuffled anew at each pass, and dealt out
    over ranks; any number of workers gives the same lines. Each dialogue is laid out in a mode drawn by weight; weights
    may change by a schedule. Dialogues too long for a line are split between turns. A resumed run goes on behind the
    last step it made. Validation is one pass in fixed order.

    Args:
        train: Dialogues folder or manifest, or several, or shards (folder, pattern, URL), or a mix: a name for each
            ``DataSource`` (or path).
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
        num_workers: Processes that lay out and read; 0 does it in the training process. The lines are the same.
        val_lines: Use only the first lines of validation.
        look_ahead: Lines kept open while packing.
        cache_audio: Keep the users' waveforms in memory once read.
        reply: How spoken replies lie in backbone positions; give this or ``lead_in``.
        mode_schedule: How the weights of ``modes`` change while training goes on (``LinearModes``); constant when None.
            Validation takes the weights that it ends with.
        temperature: Sources of a mix are drawn by ``weight ** (1 / temperature)``: as weighed at 1, evener above.
        context_turns: Turns shown again, and not learned again, before each part of a dialogue that was split.
        virtual_epoch: Optimizer steps behind which the lines that are still open are given out: a run that goes on
            plans at most so many again. None plans from the beginning.
        resume_changed: ``refuse`` to go on with other data than those of the checkpoint, or ``continue`` and warn.
        max_bad_share: Share of dialogues that may be bad before setup refuses, and of rows whose audio turns out to be
            unreadable before the run stops; up to it they are left out and counted.
        limits: What is accepted of manifests and audio, such as ``roots``; see ``IntakeLimits``.
        augment: What happens to the user's speech in training, drawn anew for every turn at every pass over the data;
            validation hears it as it was recorded.
        features: Train on what the model's frozen encoder has said of the users' turns, kept in the shards by
            ``fac data shard --features``; the encoder does not run. Validation then takes those of shards too.
    """

    batch_type = SpeechTextBatch

    def __init__(
        self,
        train: str | list[str] | dict[str, str | DataSource],
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
        temperature: float = 1.0,
        context_turns: int = 0,
        virtual_epoch: int | None = None,
        resume_changed: Literal["refuse", "continue"] = "refuse",
        max_bad_share: float = 0.01,
        limits: IntakeLimits | None = None,
        augment: Distortion | None = None,
        features: bool = False,
    ) -> None:
        if features and augment is not None:
            raise ValueError("augment changes sound and features were made of sound as recorded; take one of the two")
        self.features = features
        self.sources = _named(train)
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
            tags={name: source.tags for name, source in self.sources.items()},
        )
        mixing_shares([1], temperature)  # refused now, not when all is read
        self.temperature, self.context_turns = temperature, context_turns
        self.val_path, self.tokenizer, self.geometry = val, tokenizer, geometry
        self.modes = dict(modes) if modes else {"S2M": 1.0}
        self.mode_schedule = mode_schedule
        self.reply, self.system_prompts = reply_rule(lead_in, reply), system_prompts
        self.val_lines, self.cache_audio, self.limits = val_lines, cache_audio, limits
        self.augment = augment
        self._told = {
            "reply": part_text(self.reply, "data.reply"),
            "schedule": part_text(mode_schedule, "data.mode_schedule"),
            "augment": None if augment is None else part_text(augment, "data.augment"),
        }
        self.train_planners: dict[str, RowPlanner] = {}
        self.val_planner: RowPlanner | None = None

    @property
    def train_corpus(self) -> RowSource:
        """What is trained on, where it is one source."""
        (source,) = self.train_corpora.values()
        return source

    @property
    def train_corpora(self) -> dict[str, RowSource]:
        """What is trained on, by the names of the mix."""
        return {name: planner.source for name, planner in self.train_planners.items()}

    def setup(self, stage: str) -> None:
        """Read the manifests; count, log and, above a share, refuse dialogues that fit no line."""
        if not self.train_planners:
            places = (0.0,) if self.mode_schedule is None else (0.0, math.inf)
            self.train_planners = {
                name: self._planner(source.paths, places, source) for name, source in self.sources.items()
            }
        if self.val_planner is None and self.val_path is not None:
            self.val_planner = self._planner([self.val_path], (math.inf,))

    def train_dataloader(self) -> Any:
        """Endless loader of packed lines.

        Raises:
            ValueError: Nothing would end the training, or the model keeps features of clips that never come again.
        """
        if self.augment is not None and self.trainer is not None and self.trainer.lightning_module is not None:
            refuse_remembering(self.trainer.lightning_module)
        if self.features and self.trainer is not None and self.trainer.lightning_module is not None:
            self._check_encoder(self.trainer.lightning_module)
        return super().train_dataloader()

    def _check_encoder(self, module: nn.Module) -> None:
        """Hold the model's encoder against those that made the features."""
        planners = [*self.train_planners.values(), *([self.val_planner] if self.val_planner is not None else [])]
        for source in (planner.source for planner in planners):
            if isinstance(source, ShardCorpus) and source.features_of is not None:
                refuse_other_encoder(module, source.features_of)

    def val_dataloader(self) -> Any:
        """Loader of one pass over the validation lines."""
        assert self.val_planner is not None
        return FixedLines(self.val_planner, self.seed, self.look_ahead, self.val_lines, *self._shard())

    def shares(self) -> dict[str, float]:
        """Probability of each source."""
        sizes = [len(planner.source) for planner in self.train_planners.values()]
        shares = mixing_shares(sizes, self.temperature, [source.weight for source in self.sources.values()])
        return dict(zip(self.sources, shares.tolist(), strict=True))

    def _stream(
        self, window: int = 1, shard: int = 0, num_shards: int = 1, start: StreamPlace | None = None
    ) -> LineStream:
        return LineStream(
            list(self.train_planners.values()),
            list(self.shares().values()),
            self.seed,
            window,
            shard,
            num_shards,
            start,
            self.look_ahead,
            self.virtual_epoch,
            list(self.sources),
        )

    def _stream_settings(self) -> dict[str, Any]:
        modes = str(self.modes)
        content = {f"content of {name}": source.fingerprint() for name, source in self.train_corpora.items()}
        return {
            **content,
            "sources": {name: source.settings() for name, source in self.sources.items()},
            "temperature": self.temperature,
            "modes": modes if self.mode_schedule is None else f"{modes} by {self._told['schedule']}",
            "system_prompts": self.system_prompts,
            "context_turns": self.context_turns,
            "reply": self._told["reply"],
            "augment": self._told["augment"],
            **({"features": True} if self.features else {}),
            **self._shared_settings(),
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Counts per split: dialogues, turns, hours, rows of each mode in one epoch, mean fill of the lines.

        With a schedule of modes the rows of training are those of the start, and ``rows_at_end`` are those of the end.
        """
        self.setup("describe")
        report: dict[str, dict[str, Any]] = {}
        if len(self.sources) == 1:
            for planner in self.train_planners.values():
                report["train"] = self._describe(planner, 0.0)
        else:
            report = {f"train/{name}": self._describe(planner, 0.0) for name, planner in self.train_planners.items()}
            for name, share in self.shares().items():
                report[f"train/{name}"]["share"] = share
        lines = [line for window in islice(self._stream().windows(), 32) for line in window.lines]
        for name in report:
            report[name]["fill"] = fill(lines, self.budget)
        if self.val_planner is not None:
            fixed = FixedLines(self.val_planner, self.seed, self.look_ahead, self.val_lines)
            report["val"] = {**self._describe(self.val_planner, math.inf), "fill": fill(fixed.lines, self.budget)}
        return report

    def _describe(self, planner: RowPlanner, place: float) -> dict[str, Any]:
        source = planner.source
        report: dict[str, Any] = {**source.describe(), "rows": self._count_modes(source, place)}
        if place == 0.0 and self.mode_schedule is not None:
            report["rows_at_end"] = self._count_modes(source, math.inf)
        return report

    def _count_modes(self, source: RowSource, place: float) -> dict[str, int]:
        """Dialogues of each mode in one epoch with the weights of a place in the schedule."""
        modes = Counter(source.draw_mode(source.sketch(i), self.seed, 0, place) or "none" for i in range(len(source)))
        return dict(sorted(modes.items()))

    def _planner(self, paths: list[str], places: tuple[float, ...], own: DataSource | None = None) -> RowPlanner:
        """Plans of the dialogues of ``paths``, checked with the weights that modes have at ``places``."""
        source = self._source(paths, own)
        if self.augment is None or own is None:
            planner = RowPlanner(source, self.budget, self.context_turns)
        else:
            heard = Augmentation(self.augment, sample_rate(source))
            planner = AugmentedPlanner(source, self.budget, self.context_turns, heard)
        for place in places:
            self._check(planner, paths, place)
        return planner

    def _source(self, paths: list[str], own: DataSource | None) -> RowSource:
        """The dialogues of ``paths``."""
        prompts = {**(self.system_prompts or {}), **((own and own.system_prompts) or {})}
        return open_source(
            paths,
            self.chat,
            self.geometry,
            self.tokenizer,
            (own and own.modes) or self.modes,
            prompts,
            self.reply,
            self.cache_audio,
            mode_schedule=self.mode_schedule,
            limits=self.limits,
            max_bad_share=self.tally.max_bad_share,
            features=self.features and (own is not None or any(map(holds_shards, paths))),
        )

    def _check(self, planner: RowPlanner, paths: list[str], place: float) -> None:
        """Count and log what is left out, split and cut; refuse more than ``MAX_LEFT_OUT``."""
        source, counts, lost = planner.source, Counter[str](), []
        bad = source.bad if isinstance(source, ShardCorpus) else {}  # fills as dialogues are looked at
        size = min(len(source), MAX_COUNTED)
        for index in range(size):
            mode = source.draw_mode(item := source.sketch(index), self.seed, 0, place)
            if mode is None:
                counts["unserved"] += item.id not in bad
                continue
            parts, turns = planner.split(index, mode)
            counts.update(long=not parts, split=len(parts) > 1, turns=turns if parts else 0)
            if (cut := source.lay_out(item, mode).lost_text) and parts:
                lost.append(cut)
        limit_bad(paths, list(bad.values()), size - len(bad), self.tally.max_bad_share)
        where = ", ".join(paths)
        if left_out := counts["unserved"] + counts["long"]:
            message = (
                f"{left_out} of {size} dialogues in {where} are left out: {counts['long']} do not fit a "
                f"line of {self.budget}, {counts['unserved']} have no speech for the modes {', '.join(source.modes)}, "
                "or no text of it where these need that"
            )
            if left_out > MAX_LEFT_OUT * size:
                raise ValueError(f"{message}. Raise capacity, max_audio_seconds or max_speech_tokens, or add modes")
            log.warning(message)
        if counts["split"] or counts["turns"]:
            log.log(
                logging.WARNING if counts["turns"] else logging.INFO,
                "%d of %d dialogues in %s are too long for a line and are split between turns; %d turns fit no line "
                "and are left out",
                counts["split"],
                size,
                where,
                counts["turns"],
            )
        if lost:
            log.warning(
                "%d of %d dialogues in %s have more text than speech has positions for, and %s cuts it: %d text tokens "
                "are not learned. A longer lead-in, or the rule FrameEnd, keeps them.",
                len(lost),
                size,
                where,
                self.reply,
                sum(lost),
            )


def _named(train: str | list[str] | dict[str, str | DataSource]) -> dict[str, DataSource]:
    """The sources by name; paths alone are one source."""
    if not isinstance(train, Mapping):
        return {"train": DataSource(train)}
    if not train:
        raise ValueError("train names no source; give a path, several, or a name and a DataSource for each")
    return {name: source if isinstance(source, DataSource) else DataSource(source) for name, source in train.items()}
