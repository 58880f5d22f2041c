"""``ShardCorpus``: dialogues of shards, read as training comes to them."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from fac_lightning.data.codes import tokenizer_fingerprint
from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.data.row_source import CorpusItem, RowSource
from fac_lightning.data.shards.audio import LastRecording
from fac_lightning.data.shards.features import FeaturesOf
from fac_lightning.data.shards.folder import ShardFolder
from fac_lightning.data.shards.items import ShardItems
from fac_lightning.data.shards.length_limits import LengthLimits
from fac_lightning.data.shards.records import CODES, FEATURES, RECORDING, CodesOf
from fac_lightning.data.shards.shard import Shard
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.text_tokenizer import check_rows, text_fingerprint
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["ShardCorpus"]

log = logging.getLogger(__name__)

KEPT = 4000  # dialogues of open shards below which none is closed


class ShardCorpus(RowSource):
    """Dialogues in shards; no more than a few of these are in memory.

    Where codes, texts and lengths are read, a shard at a time, no sound is: a clip is one read and one decode when a
    packed line needs it. Each epoch has its own order of shards, and shuffles the dialogues of ``window`` shards that
    follow one another, so that reading stays local.

    Args:
        paths: Folders of shards, URLs, or patterns of manifests (``ShardFolder``), one after the other.
        chat: Token ids.
        geometry: Sizes of the model; None for text alone.
        tokenizer: The one whose codes the shards hold, to make sure; codes are not made here.
        modes: Weight of each mode of ``prompts.MODES``, to begin with.
        system_prompts: Prompts that replace those of the modes.
        reply: How spoken replies lie; ``FrameEnd()`` when None.
        mode_schedule: How the weights change over the epochs; constant when None.
        window: Shards whose dialogues are shuffled together. Twice as many and two are kept open, and small ones beyond
            that, as lines that are still being packed reach back into them.
        features: Take what a frozen encoder has said of the users' turns (``fac data shard --features``), not sound.
        limits: Of the lengths of turns and recordings that modes use; dialogues outside are left out, see ``bad``. None
            leaves out none.

    Raises:
        BadData: Shards are not whole, or do not go together (``FAC-D11`` to ``FAC-D14``).
        ValueError: Their codes are not those that the model speaks.
    """

    def __init__(
        self,
        paths: Sequence[str],
        chat: ChatFormat,
        geometry: SpeechGeometry | None,
        tokenizer: SpeechTokenizer | None,
        modes: Mapping[str, float],
        system_prompts: Mapping[str, str] | None = None,
        reply: ReplyRule | None = None,
        mode_schedule: ModeSchedule | None = None,
        window: int = 4,
        features: bool = False,
        limits: IntakeLimits | None = None,
    ) -> None:
        super().__init__(chat, geometry, modes, system_prompts, reply, mode_schedule)
        if window < 1:
            raise ValueError(f"window must be at least 1 shard, got {window}")
        self.window = window
        self._hears = any(MODES[mode].hears for mode in self.modes)
        self._says = any(MODES[mode].speaks for mode in self.modes)
        if geometry is not None:
            check_rows(chat.tokenizer, geometry.vocab_size)
        self._codes_of: CodesOf | None = None
        self.features = features
        self.features_of: FeaturesOf | None = None
        self.folders = [ShardFolder(str(path), limits) for path in paths]
        rate, where = geometry.sample_rate if geometry is not None else 1, ", ".join(map(str, paths))
        self._lengths = None if limits is None else LengthLimits(limits, rate, where)
        for folder in self.folders:
            self._check(folder, tokenizer)
        self._tokenised = self._tokenised_folders()
        self._places = [(folder, number) for folder in self.folders for number in range(len(folder.shards))]
        rows = [count for folder in self.folders for count in folder.rows()]
        self._ends: list[int] = np.cumsum(rows, dtype=np.int64).tolist()
        self._starts = [end - count for end, count in zip(self._ends, rows, strict=True)]
        if not len(self):
            raise ValueError(f"there is no dialogue in {', '.join(map(str, paths))}")
        self._open: OrderedDict[int, ShardItems] = OrderedDict()
        self._last = LastRecording()

    def __len__(self) -> int:
        """Dialogues."""
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens shards of its own."""
        return {**self.__dict__, "_open": OrderedDict(), "_last": LastRecording()}

    def item(self, index: int) -> CorpusItem:
        """Dialogue ``index`` with its codes."""
        shard, row = self._find(index)
        return shard.item(row)

    def sketch(self, index: int) -> CorpusItem:
        """Dialogue ``index`` with zeros for its codes."""
        shard, row = self._find(index)
        return shard.sketch(row)

    def served(self, item: CorpusItem) -> dict[str, str]:
        """As of any source; none of a dialogue that is too short or too long."""
        taken = self._lengths is None or self._lengths.takes(item)
        return super().served(item) if taken else {}

    @property
    def bad(self) -> dict[str, BadData]:
        """What is wrong with the dialogues that were left out so far, by their ids."""
        return {} if self._lengths is None else self._lengths.bad

    def order(self, seed: int, epoch: int) -> Iterator[int]:
        """Every index once: shards in an order of this epoch's own, dialogues mixed within ``window`` of them."""
        draw = np.random.default_rng([seed, epoch])
        shards = draw.permutation(len(self._places))
        for first in range(0, len(shards), self.window):
            block = [np.arange(self._starts[i], self._ends[i]) for i in shards[first : first + self.window]]
            yield from draw.permutation(np.concatenate(block)).tolist()

    def fingerprint(self) -> str:
        """Of the shards' content, wherever they lie."""
        told = [folder.fingerprint() for folder in self.folders]
        told += [] if self._lengths is None else [str(self._lengths)]
        return blake2b(" ".join(told).encode(), digest_size=8).hexdigest()

    def describe(self) -> dict[str, float]:
        """Counts of what is there; hours only where ``fac data shard`` has written all of it."""
        counts: dict[str, float] = {"dialogues": len(self), "shards": len(self._places)}
        if self._lengths is not None:
            counts["bad_dialogues"] = len(self.bad)
        told = [folder.summary for folder in self.folders]
        for name in ("turns", "user_hours", "assistant_hours"):
            known = [summary[name] for summary in told if summary is not None]
            if len(known) == len(told):
                counts[name] = sum(known)
        return counts

    def close(self) -> None:
        """Let go of the open shards; what is asked for next is read anew."""
        self._open.clear()
        self._last = LastRecording()

    def _find(self, index: int) -> tuple[ShardItems, int]:
        """Open shard and row of a dialogue."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} dialogues, none has the number {index}")
        number = bisect_right(self._ends, index)
        found = self._open.get(number)
        if found is None:
            folder, place = self._places[number]
            hop_length = self.features_of.hop_length if self.features_of is not None else 0
            wanted = (self.geometry, self._hears, self._says, self._last, hop_length, folder in self._tokenised)
            found = ShardItems(Shard(folder, place), *wanted)
            self._open[number] = found
            self._close_some()
        else:
            self._open.move_to_end(number)
        return found, index - self._starts[number]

    def _close_some(self) -> None:
        """Close the shards that were not asked for longest."""
        dialogues = sum(len(one.shard) for one in self._open.values())
        while len(self._open) > 2 * self.window + 2 and dialogues > KEPT:
            _, closed = self._open.popitem(last=False)
            dialogues -= len(closed.shard)

    def _tokenised_folders(self) -> set[ShardFolder]:
        """Folders that have texts as token ids of the text tokenizer at hand."""
        of = {folder: told for folder in self.folders if (told := folder.texts_of()) is not None}
        wanted = text_fingerprint(self.chat.tokenizer) if of else None
        for folder, told in of.items():
            if told.fingerprint != wanted:
                log.warning(
                    "%s has token ids of the text tokenizer %s (%s), not of this one (%s): texts are tokenised as they "
                    "are read",
                    folder.where,
                    told.tokenizer,
                    told.fingerprint,
                    wanted,
                )
        return {folder for folder, told in of.items() if told.fingerprint == wanted}

    def _check_features(self, folder: ShardFolder, geometry: SpeechGeometry) -> None:
        """Refuse features that are missing where they are asked for, or are not those of one encoder of the model."""
        of, fields = folder.features_of(), folder.shards[0].tars
        if not self.features:
            if of is not None and RECORDING not in fields:
                raise ValueError(
                    f"{folder.where} has features of {of.encoder} and no audio of the users: set data.features to true"
                )
            return
        if of is None:
            if RECORDING not in fields:
                return  # nobody says anything
            raise ValueError(
                f"{folder.where} has no features and data.features asks for them: write them with "
                "'fac data shard --features ENCODER', or set data.features to false"
            )
        if self.features_of is not None and of != self.features_of:
            before = self.features_of
            raise ValueError(
                f"{folder.where} has features of {of.encoder} {of.fingerprints['float32']}, shards before it of "
                f"{before.encoder} {before.fingerprints['float32']}; train on those of one encoder"
            )
        if of.sample_rate != geometry.sample_rate or geometry.samples_per_position % of.hop_length:
            raise ValueError(
                f"{folder.where} has features of {of.encoder}, {of.sample_rate} Hz, {of.hop_length} samples a frame; "
                f"the model hears {geometry.sample_rate} Hz, {geometry.samples_per_position} samples a position"
            )
        self.features_of = of

    def _check(self, folder: ShardFolder, tokenizer: SpeechTokenizer | None) -> None:
        """Refuse a folder whose codes are not those that the model speaks."""
        fields = folder.shards[0].tars
        heard = RECORDING in fields or FEATURES in fields
        if self.geometry is None and ((self._hears and heard) or (self._says and CODES in fields)):
            raise ValueError(
                f"{folder.where} has speech and the modes {', '.join(self.modes)} use it, but there is no geometry; "
                "give SpeechLM.geometry, or use the mode T2T alone"
            )
        if self._hears and self.geometry is not None:
            self._check_features(folder, self.geometry)
        if not self._says or CODES not in fields:
            return
        of = folder.codes_of()
        if of is not None and self._codes_of is not None and of.tokenizer != self._codes_of.tokenizer:
            raise ValueError(
                f"{folder.where} has codes of {of.tokenizer!r}, shards before it of {self._codes_of.tokenizer!r}: they "
                "mean other sounds; train on one kind at a time"
            )
        self._codes_of = of or self._codes_of
        if tokenizer is None:
            return
        names = [name for name in (tokenizer.codes_name, tokenizer_fingerprint(tokenizer)) if name]
        if of is None:
            log.warning("%s does not say whose codes it holds; they are taken for those of %s", folder.where, names[0])
        elif not {of.tokenizer, of.fingerprint} & set(names):
            raise ValueError(
                f"{folder.where} has codes of {of.tokenizer!r}, but the speech tokenizer {type(tokenizer).__name__} is "
                f"{' or '.join(names)}: the same numbers mean other sounds. Give the tokenizer that made them, or none"
            )
