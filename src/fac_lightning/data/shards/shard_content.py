"""What one shard holds: lines of its manifest and members of its tars, dialogue by dialogue."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fac_lightning.data.audio import Span, read_span, to_int16
from fac_lightning.data.dialogue import turn_span
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.features import FeatureMaker, FeaturesOf
from fac_lightning.data.shards.records import (
    CODES,
    FEATURES,
    RECORDING,
    REPLIES,
    TEXTS,
    CodesOf,
    array_placeholder,
    audio_placeholder,
    shard_record,
)
from fac_lightning.data.shards.tar import TarField
from fac_lightning.data.shards.texts import TextMaker

__all__ = ["AUDIO_FORMATS", "ReadDialogue", "ShardContent", "ShardTask", "encode_audio", "npy_bytes"]

#: name of an audio format -> format and subtype of libsndfile
AUDIO_FORMATS = {"flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "opus": ("OGG", "OPUS")}

Member = tuple[str, bytes, dict[str, Any], int]  # suffix, bytes, lhotse manifest, bytes of its header


@dataclass(frozen=True)
class ShardTask:
    """What one shard is made of."""

    number: int
    cuts: tuple[Any, ...]
    codes: Mapping[tuple[str, int], np.ndarray]  # (T, Q) by cut id and turn
    bad: Mapping[str, str] = field(default_factory=dict)  # dialogues that must be left out, and why


@dataclass
class ReadDialogue:
    """A dialogue on its way into a shard."""

    cut: Any
    codes: Mapping[int, np.ndarray]  # by turn
    members: dict[str, Member] = field(default_factory=dict)  # of the tars
    sounds: Mapping[int, tuple[np.ndarray, int]] = field(default_factory=dict)  # of the user's turns, with their rate
    heard: Mapping[int, tuple[np.ndarray, int]] = field(default_factory=dict)  # features of these
    clipped: int = 0  # samples


class ShardContent:
    """Lines of the manifest and members of the tars, dialogue by dialogue."""

    def __init__(
        self,
        tars: Mapping[str, TarField],
        audio: str | None,
        codes_of: CodesOf | None,
        dtype: str,
        features: FeatureMaker | None = None,
        texts: TextMaker | None = None,
    ) -> None:
        self.tars, self.audio, self.codes_of, self.dtype = tars, audio, codes_of, dtype
        self.features, self.texts = features, texts
        self.features_of = None if features is None else asdict(FeaturesOf.of(features.encoder))
        self.texts_of = None if texts is None else asdict(texts.of)
        self.lines: list[str] = []
        self.counts: dict[str, float] = dict.fromkeys(
            ("turns", "user_seconds", "assistant_seconds", "code_frames", "clipped_samples"), 0
        )

    def read(self, cut: Any, task: ShardTask) -> ReadDialogue:
        """Sound and codes of a dialogue; what is wrong is told before anything is written.

        Raises:
            ValueError: It cannot be stored.
        """
        if cut.id in task.bad:
            raise ValueError(task.bad[cut.id])
        turns = range(len(cut.supervisions))
        read = ReadDialogue(cut, {i: task.codes[cut.id, i] for i in turns if (cut.id, i) in task.codes})
        for name, span in _sides(cut).items():
            hears = name == RECORDING and self.features is not None
            if self.audio is None and not hears:
                continue
            samples = read_span(span)
            read.clipped += int((np.abs(samples) > 1.0).sum())
            whole = to_int16(samples)
            _check_turns(cut, name, len(whole))
            rate = span.recording.sampling_rate
            if hears:
                read.sounds = _user_turns(cut, whole, rate)
            if self.audio is not None:
                told = audio_placeholder(span.recording.id, rate, len(whole))
                read.members[name] = (self.audio, encode_audio(whole, rate, self.audio), told, 0)
        return read

    def hear(self, dialogues: Sequence[ReadDialogue]) -> None:
        """Let the encoder hear the users of some dialogues, all at once."""
        if self.features is None:
            return
        found = iter(self.features([sound for one in dialogues for sound in one.sounds.values()]))
        for one in dialogues:
            one.heard = {i: next(found) for i in one.sounds}

    def write(self, read: ReadDialogue) -> None:
        """Append a dialogue.

        Raises:
            ValueError: Its features have no place in the type that they are kept in.
        """
        cut, codes, heard, members = read.cut, read.codes, read.heard, read.members
        placeholders = {name: told for name, (_, _, told, _) in members.items()}
        ids = [] if self.texts is None else self.texts([one.text for one in cut.supervisions])
        whose = (self.features_of, ids, self.texts_of)
        record = shard_record(cut, placeholders, codes, self.codes_of, heard, *whose)
        if self.texts is not None:
            members[TEXTS] = _numbers(np.concatenate(ids) if ids else np.zeros(0, self.texts.dtype))
        if heard:
            frames = np.concatenate([features for features, _ in heard.values()])
            if not np.isfinite(frames).all():
                told = f"dialogue {cut.id!r}: features that {frames.dtype} cannot hold"
                raise ValueError(f"{told}; keep them as float32 (feature_dtype)")
            members[FEATURES] = _numbers(frames)
        if codes:
            members[CODES] = _numbers(np.concatenate([codes[i] for i in sorted(codes)]).astype(self.dtype))
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        for name, tar in self.tars.items():
            if name in members:
                suffix, data, placeholder, header = members[name]
                tar.add(cut.id, suffix, data, json.dumps(placeholder, separators=(",", ":")), header)
            else:
                tar.skip(cut.id)
        self.lines.append(line)
        self._count(cut, codes, read.clipped)

    def _count(self, cut: Any, codes: Mapping[int, np.ndarray], clipped: int) -> None:
        self.counts["turns"] += len(cut.supervisions)
        self.counts["code_frames"] += sum(map(len, codes.values()))
        self.counts["clipped_samples"] += clipped
        for i, supervision in enumerate(cut.supervisions):
            if i in codes or turn_span(cut, i) is not None:
                self.counts[f"{supervision.speaker}_seconds"] += supervision.duration


def _user_turns(cut: Any, whole: np.ndarray, rate: int) -> dict[int, tuple[np.ndarray, int]]:
    """Samples and rate of each spoken turn of the user."""
    found = {}
    for i, supervision in enumerate(cut.supervisions):
        if supervision.speaker == "user" and turn_span(cut, i) is not None:
            first, count = round(supervision.start * rate), round(supervision.duration * rate)
            found[i] = whole[first : first + count], rate
    return found


def _sides(cut: Any) -> dict[str, Span]:
    """The audio of each side that has some."""
    sides = {}
    if cut.has_recording:
        rate = cut.recording.sampling_rate
        sides[RECORDING] = Span(cut.recording, round(cut.start * rate), round(cut.duration * rate))
    if (replies := (cut.custom or {}).get(REPLIES)) is not None:
        sides[REPLIES] = Span(replies, 0, replies.num_samples)
    return sides


def _check_turns(cut: Any, side: str, num_samples: int) -> None:
    """Refuse a turn that is not inside the audio of its side."""
    for i, supervision in enumerate(cut.supervisions):
        if (supervision.speaker == "user") != (side == RECORDING) or (span := turn_span(cut, i)) is None:
            continue
        first = round(supervision.start * span.recording.sampling_rate)
        if first < 0 or first + span.count > num_samples:
            told = f"samples {first} to {first + span.count} of {num_samples}"
            advice = "Correct start and duration of the supervision"
            raise bad_data("FAC-D09", f"cut {cut.id!r}, turn {i}", told, "a turn inside its recording", advice)


def encode_audio(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """A sound file of int16 samples ``(S,)``.

    Raises:
        ValueError: The format does not take the rate.
    """
    import soundfile

    form, subtype = AUDIO_FORMATS[kind]
    out = io.BytesIO()
    try:
        soundfile.write(out, samples, rate, format=form, subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{kind} takes no audio of {rate} Hz ({error}); choose flac or wav") from error
    return out.getvalue()


def _numbers(array: np.ndarray) -> Member:
    """An array as a member of a tar."""
    data = npy_bytes(array)
    return "npy", data, array_placeholder(array.shape), len(data) - array.nbytes


def npy_bytes(array: np.ndarray) -> bytes:
    """An npy file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
