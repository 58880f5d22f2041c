"""One record of a manifest, a Lhotse cut or recording as JSON has it, against the rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.audio import DeclaredAudio
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.sources import SourceGate

__all__ = ["AudioPiece", "audio_pieces", "check_record", "declared_audio"]

Record = Mapping[str, Any]
ROLES = ("user", "assistant")
CUTS = ("MonoCut", "MultiCut")
KINDS = (*CUTS, "MixedCut", "PaddingCut")


@dataclass(frozen=True)
class AudioPiece:
    """A recording that a record names."""

    field: str  # where in the record
    recording: Record


def audio_pieces(record: Record) -> Iterator[AudioPiece]:
    """Every recording of a record: its own, those of its tracks, and those in ``custom``."""
    if "sources" in record:
        yield AudioPiece("sources", record)
    if isinstance(record.get("recording"), Mapping):
        yield AudioPiece("recording", record["recording"])
    for name, value in (record.get("custom") or {}).items():
        if isinstance(value, Mapping) and "sources" in value and "sampling_rate" in value:
            yield AudioPiece(name, value)
    for i, track in enumerate(record.get("tracks") or ()):
        for piece in audio_pieces(track.get("cut") or {}):
            yield AudioPiece(f"tracks[{i}].{piece.field}", piece.recording)


def declared_audio(recording: Record) -> DeclaredAudio:
    """What a recording that passed ``check_record`` says of its first file."""
    return DeclaredAudio(
        int(recording["sampling_rate"]), int(recording["num_samples"]), len(recording["sources"][0]["channels"])
    )


def check_record(
    record: Record, where: str, gate: SourceGate, limits: IntakeLimits, dialogue: bool | None = None
) -> list[BadData]:
    """Everything that is wrong with a record without looking at its audio: FAC-D07 to D10, D15, A13, A14.

    Args:
        record: With an ``id``.
        where: File and line.
        gate: Decides about sources.
        limits: What is accepted.
        dialogue: Whether it must be a dialogue, with turns of user and assistant; by its speakers when None.
    """
    place = f"{where}, cut {record['id']!r}"
    try:
        return list(_record(record, where, gate, limits, dialogue))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        value = f"fields that cannot be read ({type(error).__name__}: {error})"
        return [bad_data("FAC-D15", place, value, "the fields of a lhotse cut", what="not a lhotse cut")]


def _record(
    record: Record, where: str, gate: SourceGate, limits: IntakeLimits, dialogue: bool | None
) -> Iterable[BadData]:
    place, kind = f"{where}, cut {record['id']!r}", record.get("type")
    if kind is None and "sources" in record:
        return _recording(record, f"{where}, recording {record['id']!r}", gate, limits)
    if kind not in KINDS:
        value = f"the type {kind!r}" if "type" in record else "no type"
        what = "not a lhotse cut"
        return [bad_data("FAC-D15", f"{place}, field 'type'", value, f"one of {', '.join(KINDS)}", what=what)]
    if kind == "MixedCut":
        tracks = enumerate(_list(record, "tracks"))
        return [problem for i, track in tracks for problem in _track(track, f"{place}, track {i}", gate, limits)]
    if kind == "PaddingCut":
        return _positive(record, "duration", place)
    return _cut(record, place, gate, limits, dialogue)


def _track(track: Record, place: str, gate: SourceGate, limits: IntakeLimits) -> list[BadData]:
    cut = track.get("cut") if isinstance(track, Mapping) else None
    if not isinstance(cut, Mapping) or "id" not in cut:
        return [bad_data("FAC-D15", place, "no cut", "a track with a cut", what="not a lhotse cut")]
    return check_record({"type": "MonoCut", **cut}, place, gate, limits, dialogue=False)


def _cut(
    record: Record, place: str, gate: SourceGate, limits: IntakeLimits, dialogue: bool | None
) -> Iterator[BadData]:
    problems = _positive(record, "duration", place)
    for piece in audio_pieces(record):
        problems += _recording(piece.recording, f"{place}, {piece.field}", gate, limits)
    yield from problems
    if problems:  # what follows reckons with these
        return
    answers = (record.get("custom") or {}).get("target_audio")
    if answers is not None and not (isinstance(answers, Mapping) and {"sources", "sampling_rate"} <= answers.keys()):
        at = f"{place}, field 'target_audio'"
        yield bad_data(
            "FAC-D15", at, answers, "a recording with sources and sampling_rate", what="not a lhotse recording"
        )
        return
    recording = record.get("recording")
    start = _number(record.get("start"))
    if start is None:
        yield bad_data("FAC-D15", f"{place}, field 'start'", record.get("start"), "seconds", what="not a lhotse cut")
        return
    if recording is not None:
        yield from _bounds(start, float(record["duration"]), recording, place, limits)
        yield from _channels(record, recording, place, limits)
    turns = _list(record, "supervisions")
    speakers = {turn.get("speaker") for turn in turns}
    talks = bool(speakers & set(ROLES)) if dialogue is None else dialogue
    if talks and not turns:
        at = f"{place}, field 'supervisions'"
        yield bad_data("FAC-D15", at, "no turn", "one turn at least", what="empty dialogue")
    if not talks:
        yield from _length(float(record["duration"]), place, limits)
    for i, turn in enumerate(turns):
        side = f"{place}, turn {i}" if talks else f"{place}, supervision {i}"
        yield from _turn(turn, record, side, limits) if talks else _supervision(turn, record, side, limits)


def _turn(turn: Record, record: Record, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    """A turn of a dialogue; its span counts in the recording of its own side."""
    speaker, text = turn.get("speaker"), turn.get("text")
    if speaker not in ROLES:
        value = f"{speaker!r}"
        yield bad_data("FAC-D15", f"{place}, field 'speaker'", value, "'user' or 'assistant'", what="unknown speaker")
        return
    if not isinstance(text, str) or (speaker == "assistant" and not text.strip()):
        rule = "the words" if speaker == "assistant" else "a text, '' where the words are not known"
        yield bad_data("FAC-D09", f"{place}, field 'text'", text, rule, what="turn without text")
    custom = turn.get("custom") or {}
    recording = record.get("recording") if speaker == "user" else (record.get("custom") or {}).get("target_audio")
    if recording is None or not custom.get("spoken", True):
        return
    problems = _positive(turn, "duration", place)
    yield from problems
    if problems:
        return
    whole = float(record["duration"]) if speaker == "user" else float(recording["duration"])
    yield from _inside(turn, whole, place, limits)
    yield from _length(float(turn["duration"]), place, limits)


def _supervision(turn: Record, record: Record, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    """A supervision of any other cut; it counts from the cut's start."""
    problems = _positive(turn, "duration", place)
    yield from problems
    if not problems:
        yield from _inside(turn, float(record["duration"]), place, limits)
    if "text" in turn and not str(turn["text"] or "").strip():
        yield bad_data("FAC-D09", f"{place}, field 'text'", turn["text"], "words", what="supervision without text")


def _inside(turn: Record, whole: float, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    start, duration = _number(turn.get("start")), float(turn["duration"])
    if start is None or start < -limits.frame_tolerance or start + duration > whole + limits.frame_tolerance:
        value = f"{turn.get('start')} to {'?' if start is None else f'{start + duration:.3f}'} s"
        at, rule = f"{place}, fields 'start', 'duration'", f"inside 0 to {whole:.3f} s"
        yield bad_data("FAC-D09", at, value, rule, what="turn outside its audio")


def _length(seconds: float, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    if seconds < limits.min_seconds - 1e-6:
        rule = f"at least {limits.min_seconds:g} s"
        yield bad_data("FAC-A14", f"{place}, field 'duration'", f"{seconds:.4f} s", rule)


def _bounds(start: float, duration: float, recording: Record, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    whole = float(recording["duration"])
    if start < 0 or start >= whole or start + duration > whole + limits.frame_tolerance:
        value = f"{start:.3f} to {start + duration:.3f} s"
        yield bad_data("FAC-D08", f"{place}, fields 'start', 'duration'", value, f"inside 0 to {whole:.3f} s")


def _channels(record: Record, recording: Record, place: str, limits: IntakeLimits) -> Iterator[BadData]:
    there = [channel for source in recording["sources"] for channel in source["channels"]]
    chosen = record.get("channel", there)
    chosen = chosen if isinstance(chosen, list) else [chosen]
    if lost := [channel for channel in chosen if channel not in there]:
        yield bad_data("FAC-A13", f"{place}, field 'channel'", lost[0], f"one of {', '.join(map(str, there))}")
    elif len(chosen) != limits.channels:
        yield bad_data("FAC-A13", f"{place}, field 'channel'", f"{len(chosen)} channels", f"{limits.channels}")


def _recording(recording: Record, place: str, gate: SourceGate, limits: IntakeLimits) -> list[BadData]:
    """What is wrong with a recording by itself."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or not sources or not all(_is_source(source) for source in sources):
        rule = "sources with type, channels and source"
        return [bad_data("FAC-D15", f"{place}, field 'sources'", sources, rule, what="not a lhotse recording")]
    channels = recording.get("channel_ids")
    if "id" not in recording or not (channels is None or _are_channels(channels)):
        told = f"the id {recording.get('id')!r} and the channels {channels!r}"
        return [bad_data("FAC-D15", place, told, "an id and a list of channels", what="not a lhotse recording")]
    found = [x for source in sources if (x := gate.check(source, f"{place}, source {source['source']!r}")) is not None]
    if problems := [*found, *_positive(recording, "duration", place)]:
        return problems
    rate, frames = _number(recording.get("sampling_rate")), _number(recording.get("num_samples"))
    if not rate or rate < 0 or frames is None or frames < 0:
        value = f"{recording.get('num_samples')} samples at {recording.get('sampling_rate')} Hz"
        return [bad_data("FAC-D15", place, value, "num_samples and sampling_rate", what="not a lhotse recording")]
    if abs(frames / rate - recording["duration"]) > limits.frame_tolerance:
        rule = f"{frames / rate:.3f} s, as num_samples and sampling_rate say"
        return [bad_data("FAC-D07", f"{place}, field 'duration'", f"{recording['duration']} s", rule)]
    return []


def _is_source(source: object) -> bool:
    return (
        isinstance(source, Mapping)
        and isinstance(source.get("type"), str)
        and (isinstance(source.get("source"), str) or source["type"] == "memory")
        and _are_channels(source.get("channels"))
    )


def _are_channels(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(channel) is int for channel in value)


def _positive(record: Record, field: str, place: str) -> list[BadData]:
    """FAC-D07 where a field is not a number of seconds above 0."""
    number = _number(record.get(field))
    if number is not None and number > 0:
        return []
    return [bad_data("FAC-D07", f"{place}, field {field!r}", record.get(field, "no duration"))]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _list(record: Record, field: str) -> list[Any]:
    value = record.get(field) or []
    if not isinstance(value, list):
        raise TypeError(f"{field} is no list")
    return value
