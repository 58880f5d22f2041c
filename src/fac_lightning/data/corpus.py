"""A corpus: the dialogues of some manifests, ready to be laid out in any mode."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.audio import Span, read_span, to_int16
from fac_lightning.data.codes import CodeStore, tokenizer_fingerprint
from fac_lightning.data.dialogue import load_turn_codes, turn_span
from fac_lightning.data.errors import BadData
from fac_lightning.data.good_dialogues import GoodDialogues, good_dialogues, limit_bad
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.layout import Clip, SpokenTurn
from fac_lightning.data.manifest import manifest_path
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.data.row_source import CorpusItem, RowSource
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.prompts import MODES, ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.text_tokenizer import check_rows
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["Corpus", "CorpusItem"]

log = logging.getLogger(__name__)


class Corpus(RowSource):
    """Dialogues in memory: texts and codes; the users' waveforms are read when a line needs them.

    Args:
        paths: Dialogue folders or manifests, one after the other.
        chat: Token ids.
        geometry: Sizes of the model; None for text alone.
        tokenizer: Makes the codes of the assistant's turns; None where no mode says speech, or where codes come with
            the turns.
        modes: Weight of each mode of ``prompts.MODES``, to begin with.
        system_prompts: Prompts that replace those of the modes.
        reply: How spoken replies lie; ``FrameEnd()`` when None.
        cache_audio: Keep the users' waveforms as 16-bit integers once they are read.
        progress: Show a bar while codes are made.
        mode_schedule: How the weights change over the epochs; constant when None.
        limits: What is accepted; when None the default, but turns may be as short as one group of the model.
        max_bad_share: Share of bad dialogues above which all are refused; fewer are left out, see ``bad``.

    Raises:
        BadData: A manifest is refused as a whole: it breaks off, runs commands, or leaves the data.
        ValueError: Too many dialogues are bad, or they do not go with the model.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        chat: ChatFormat,
        geometry: SpeechGeometry | None,
        tokenizer: SpeechTokenizer | None,
        modes: Mapping[str, float],
        system_prompts: Mapping[str, str] | None = None,
        reply: ReplyRule | None = None,
        cache_audio: bool = True,
        progress: bool = True,
        mode_schedule: ModeSchedule | None = None,
        limits: IntakeLimits | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie between 0 and 1, got {max_bad_share}")
        super().__init__(chat, geometry, modes, system_prompts, reply, mode_schedule)
        self._hears = any(MODES[mode].hears for mode in self.modes)
        self._says = any(MODES[mode].speaks for mode in self.modes)
        self._check_sizes(tokenizer)
        self.limits = limits or _limits_of(geometry)
        self.items: list[CorpusItem] = []
        self.bad: list[BadData] = []  # what is wrong with the dialogues that are left out, one problem each
        self.bad_ids: set[str] = set()  # those of them that have an id
        self.flaws: Counter[str] = Counter()  # code -> clips read in this process that were silent or clipped
        self._codes_name: str | None = None
        for path in paths:
            self._read(path, tokenizer, cache_audio, progress)
        limit_bad(paths, self.bad, len(self.items), max_bad_share)
        if not self.items:
            raise ValueError(f"there is no dialogue in {', '.join(map(str, paths))}")

    def __len__(self) -> int:
        """Dialogues."""
        return len(self.items)

    def item(self, index: int) -> CorpusItem:
        """Dialogue ``index``."""
        return self.items[index]

    def fingerprint(self) -> str:
        """Of ids, texts, lengths and codes; the users' waveforms count by their lengths."""
        digest = blake2b(digest_size=8)
        for item in self.items:
            digest.update(f"{item.id}\n{item.system}\n".encode())
            for turn in item.turns:
                digest.update(f"{turn.role}\n{turn.text}\n{turn.clip and turn.clip.num_samples}\n".encode())
                if turn.codes is not None:
                    digest.update(turn.codes.tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, float]:
        """Counts of what is there."""
        turns = [turn for item in self.items for turn in item.turns]
        heard = [turn.clip.num_samples for turn in turns if turn.clip is not None]
        said = [turn.seconds for turn in turns if turn.codes is not None]
        rate = self.geometry.sample_rate if self.geometry else 1
        return {
            "dialogues": len(self.items),
            "turns": len(turns),
            "spoken_user_turns": len(heard),
            "spoken_assistant_turns": len(said),
            "user_hours": sum(heard) / rate / 3600,
            "assistant_hours": sum(said) / 3600,
            "bad_dialogues": len(self.bad),
        }

    def _read(self, path: str | Path, tokenizer: SpeechTokenizer | None, cache_audio: bool, progress: bool) -> None:
        sides = (*(["user"] if self._hears else []), *(["assistant"] if self._says else []))
        found = good_dialogues(path, self.limits, sides)
        stored: dict[tuple[str, int], TurnCodes] = {}
        damaged: dict[tuple[str, int], BadData] = {}
        for cut in found.cuts:
            for i in range(len(cut.supervisions)):
                try:
                    made = load_turn_codes(cut, i)
                except BadData as problem:
                    damaged[cut.id, i] = problem
                    continue
                if made is not None:
                    stored[cut.id, i] = made
        found.drop(damaged)
        replies = any(cut.supervisions[i].speaker == "assistant" for cut in found.cuts for i in _spoken(cut))
        codes: dict[tuple[str, int], np.ndarray] = {}
        if stored and self._says:
            codes = self._check_stored(path, stored, tokenizer)
        if replies and self._says:
            if tokenizer is None or self.geometry is None:
                raise ValueError(
                    f"{path} has spoken replies and the modes {', '.join(self.modes)} say them, but there is no "
                    f"{'speech tokenizer' if tokenizer is None else 'geometry'}; give one, or leave the modes "
                    f"{', '.join(mode for mode in self.modes if MODES[mode].speaks)} out"
                )
            made_here, lost = CodeStore(manifest_path(path).parent, tokenizer).complete_good(found.cuts, progress)
            codes |= made_here
            found.drop(lost)
        self.bad += found.bad
        self.bad_ids |= found.bad_ids
        for cut in found.cuts:
            turns = tuple(self._turn(found, cut, i, codes, cache_audio) for i in range(len(cut.supervisions)))
            unwritten = any(
                cut.supervisions[i].speaker == "user" and not cut.supervisions[i].text.strip() for i in _spoken(cut)
            )
            self.items.append(CorpusItem(cut.id, turns, (cut.custom or {}).get("system"), unwritten))

    def _check_stored(
        self, path: str | Path, stored: Mapping[tuple[str, int], TurnCodes], tokenizer: SpeechTokenizer | None
    ) -> dict[tuple[str, int], np.ndarray]:
        """Codes ``(T, Q)`` that come with turns, if they are those that the model speaks."""
        for (name, i), made in stored.items():
            where = f"{path}: cut {name!r}, turn {i}"
            self._codes_name = self._codes_name or made.tokenizer
            if made.tokenizer != self._codes_name:
                raise ValueError(
                    f"{where} has codes of {made.tokenizer!r}, turns before it of {self._codes_name!r}: they mean "
                    "other sounds; train on one kind at a time"
                )
            if self.geometry is None:
                raise ValueError(f"{where} has codes that {', '.join(self.modes)} say, but there is no geometry")
            books, size = made.codes.shape[1], int(made.codes.max())
            if books != self.geometry.num_codebooks or size >= self.geometry.codebook_size:
                raise ValueError(
                    f"{where} has {books} codebook(s) with codes up to {size}, the model {self.geometry.num_codebooks} "
                    f"with codes below {self.geometry.codebook_size}; build the model for {made.tokenizer!r}"
                )
        if tokenizer is not None and self._codes_name not in _names(tokenizer):
            raise ValueError(
                f"{path} has codes of {self._codes_name!r}, but the speech tokenizer {type(tokenizer).__name__} is "
                f"{' or '.join(_names(tokenizer))}: the same numbers mean other sounds. Give the tokenizer that made "
                "them, or none"
            )
        return {turn: made.codes for turn, made in stored.items()}

    def _turn(
        self,
        found: GoodDialogues,
        cut: Any,
        index: int,
        codes: Mapping[tuple[str, int], np.ndarray],
        cache_audio: bool,
    ) -> SpokenTurn:
        supervision, span = cut.supervisions[index], found.spans.get((cut.id, index))
        if supervision.speaker == "assistant":
            said = codes.get((cut.id, index))
            return SpokenTurn("assistant", supervision.text, codes=said, seconds=supervision.duration)
        if span is None or not self._hears:
            return SpokenTurn("user", supervision.text)
        if self.geometry is None:
            raise ValueError(
                f"cut {cut.id!r} has a spoken user turn and the modes {', '.join(self.modes)} hear it, but there is no "
                "geometry; give SpeechLM.geometry, or leave the modes "
                f"{', '.join(mode for mode in self.modes if MODES[mode].hears)} out"
            )
        rate, place = self.geometry.sample_rate, (found.places[cut.id], index)
        reader = _ClipReader(span, rate, cache_audio, self.limits, place, self.flaws)
        return SpokenTurn("user", supervision.text, clip=Clip(span.num_samples(rate), reader))

    def _check_sizes(self, tokenizer: SpeechTokenizer | None) -> None:
        """The model's sizes against those of the two tokenizers."""
        geometry = self.geometry
        if geometry is None:
            return
        check_rows(self.chat.tokenizer, geometry.vocab_size)
        if tokenizer is not None and self._says:
            sizes = (tokenizer.num_codebooks, tokenizer.codebook_size)
            if sizes != (geometry.num_codebooks, geometry.codebook_size):
                raise ValueError(
                    f"the speech tokenizer has (codebooks, codes) = {sizes}, the model "
                    f"{(geometry.num_codebooks, geometry.codebook_size)}; build the model with the tokenizer's sizes "
                    f"(vars.num_codebooks {sizes[0]}, vars.codebook_size {sizes[1]})"
                )


def _names(tokenizer: SpeechTokenizer) -> list[str]:
    """Names of the codes that a tokenizer makes."""
    name = tokenizer.codes_name
    return [*([name] if name else []), tokenizer_fingerprint(tokenizer)]


def _limits_of(geometry: SpeechGeometry | None) -> IntakeLimits:
    """The default, with the model's own group as the shortest turn."""
    limits = IntakeLimits()
    group = geometry.samples_per_position / geometry.sample_rate if geometry else limits.min_seconds
    return replace(limits, min_seconds=min(group, limits.min_seconds))


def _spoken(cut: Any) -> list[int]:
    """Turns that have audio."""
    return [i for i in range(len(cut.supervisions)) if turn_span(cut, i) is not None]


class _ClipReader:
    """Reads one user turn as 16-bit samples, and may remember it."""

    def __init__(
        self,
        span: Span,
        sample_rate: int,
        cache: bool,
        limits: IntakeLimits,
        place: tuple[str, int],
        flaws: Counter[str],
    ) -> None:
        self.span, self.sample_rate, self.cache = span, sample_rate, cache
        self.limits, self.place, self.flaws = limits, place, flaws
        self.samples: np.ndarray | None = None

    def __call__(self) -> np.ndarray:
        if self.samples is not None:
            return self.samples
        try:
            audio = read_span(self.span, self.sample_rate, self.limits, self._note)
            self._check_length(len(audio))
        except BadData as problem:
            raise self._placed(problem) from problem
        samples = to_int16(audio)
        if self.cache:
            self.samples = samples
        return samples

    def _placed(self, problem: BadData) -> BadData:
        return problem.inside("{}, turn {}".format(*self.place))

    def _check_length(self, found: int) -> None:
        due = self.span.num_samples(self.sample_rate)
        if found != due:
            where, rule = f"recording {self.span.recording.id!r}", f"the {due} that were there when the run began"
            raise bad_data("FAC-A09", where, f"{found} samples", rule, "Leave the data alone while a run reads them")

    def _note(self, flaw: BadData) -> None:
        if not self.flaws[flaw.code]:
            log.warning("%s It is used as it is; more of the kind are counted.", self._placed(flaw))
        self.flaws[flaw.code] += 1
