"""What manifests tell of dialogues, alike for folders, cuts and shards, of which one is open at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fac_lightning.data.dialogue import check_turn, load_turn_codes, read_cuts, turn_span
from fac_lightning.data.shards import ShardFolder
from fac_lightning.data.shards.features import FeaturesOf
from fac_lightning.data.shards.open import expand_paths, holds_shards
from fac_lightning.data.shards.records import CodesOf
from fac_lightning.data.shards.shard import Shard, StoredDialogue

__all__ = ["DialogueFacts", "TurnFacts", "read_facts"]

VOICES = ("voice", "speaker", "speaker_id", "voice_id")  # custom fields of turns and dialogues that name who speaks


@dataclass(frozen=True)
class TurnFacts:
    """A turn."""

    role: str
    text: str
    seconds: float | None  # of its speech; None without
    voice: str | None
    codes: str | None = None  # name of the tokenizer whose codes come with it
    frames: int = 0  # of these codes
    frame_rate: float = 0.0  # Hz, of these codes


@dataclass(frozen=True)
class DialogueFacts:
    """A dialogue."""

    id: str
    turns: tuple[TurnFacts, ...]
    system: str | None
    recordings: tuple[tuple[str, int, str], ...]  # side, sample rate in Hz and kind of file of each


def read_facts(paths: Sequence[str]) -> Iterator[DialogueFacts]:
    """Dialogues of folders, manifests, patterns and shards, in order.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: A manifest is damaged or empty.
    """
    for path in expand_paths(paths):
        empty = True
        for facts in _of_shards(path) if holds_shards(path) else map(_of_cut, read_cuts(path)):
            empty = False
            yield facts
        if empty:
            raise ValueError(f"there is no dialogue in {path}")


def _of_cut(cut: Any) -> DialogueFacts:
    turns, recordings = [], {}
    for i, supervision in enumerate(cut.supervisions):
        check_turn(cut, i)
        span, stored = turn_span(cut, i), load_turn_codes(cut, i)
        seconds = stored.seconds if stored is not None else None
        if span is not None:
            recording = span.recording
            seconds = span.count / recording.sampling_rate
            source = _container(recording.sources[0]) if recording.sources else "none"
            recordings[supervision.speaker, recording.id] = (supervision.speaker, recording.sampling_rate, source)
        turns.append(
            TurnFacts(
                supervision.speaker,
                supervision.text,
                seconds,
                _voice(supervision.custom or {}, cut.custom or {}),
                *((stored.tokenizer, len(stored.codes), stored.frame_rate) if stored is not None else ()),
            )
        )
    return DialogueFacts(cut.id, tuple(turns), (cut.custom or {}).get("system"), tuple(recordings.values()))


def _of_shards(path: str) -> Iterator[DialogueFacts]:
    folder = ShardFolder(path)
    of, heard_by = folder.codes_of(), folder.features_of()
    for number in range(len(folder.shards)):
        shard = Shard(folder, number)
        for row in range(len(shard)):
            yield _of_stored(shard.dialogue(row), of, heard_by)


def _of_stored(stored: StoredDialogue, of: CodesOf | None, heard_by: FeaturesOf | None) -> DialogueFacts:
    turns, recordings = [], {}
    custom = stored.record.get("custom") or {}
    for i, told in enumerate(stored.record["supervisions"]):
        span, frames, role = stored.span(i), stored.code_frames[i], told["speaker"]
        name, rate = (of.tokenizer, of.frame_rate) if of is not None else ("unknown", 25.0)
        seconds = frames / rate if frames else None
        heard = (told.get("custom") or {}).get("feature_samples")
        if span is None and heard is not None and heard_by is not None:
            seconds = heard / heard_by.sample_rate
            recordings[role] = (role, heard_by.sample_rate, "features")
        if span is not None:
            seconds = span[2] / span[0].rate
            recordings[role] = (role, span[0].rate, "shar")
        codes = (name, frames, rate) if frames else ()
        turns.append(TurnFacts(role, told["text"], seconds, _voice(told.get("custom") or {}, custom), *codes))
    return DialogueFacts(stored.id, tuple(turns), custom.get("system"), tuple(recordings.values()))


def _voice(turn: Mapping[str, Any], dialogue: Mapping[str, Any]) -> str | None:
    """Who speaks, by the custom fields of the turn or else of its dialogue."""
    named = [custom[key] for custom in (turn, dialogue) for key in VOICES if isinstance(custom.get(key), str | int)]
    return str(named[0]) if named else None


def _container(source: Any) -> str:
    """How a recording is stored, as its source names it."""
    if source.type not in ("file", "url"):
        return str(source.type)
    suffix = PurePosixPath(str(source.source)).suffix.lower().lstrip(".")
    return suffix or str(source.type)
