"""One shard is written: its tars, its manifest, its index, each under its name only when all are whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fac_lightning.data.audio import Span, read_span, to_int16
from fac_lightning.data.dialogue import turn_span
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.features import FeatureMaker, FeaturesOf
from fac_lightning.data.shards.index import FieldIndex, ShardIndex
from fac_lightning.data.shards.names import draft_name, index_name, manifest_name, tar_name
from fac_lightning.data.shards.records import (
    CODES,
    FEATURES,
    RECORDING,
    REPLIES,
    CodesOf,
    array_placeholder,
    audio_placeholder,
    shard_record,
)
from fac_lightning.data.shards.tar import TarField

__all__ = ["AUDIO_FORMATS", "ShardTask", "ShardWriter"]

T_ = TypeVar("T_")

#: name of an audio format -> format and subtype of libsndfile
AUDIO_FORMATS = {"flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16"), "opus": ("OGG", "OPUS")}
HEARD_SECONDS = 240.0  # of users that are in memory at once where an encoder hears them
CODE_DTYPES = ("|u1", "<u2", "<i4")  # smallest first


@dataclass(frozen=True)
class ShardTask:
    """What one shard is made of."""

    number: int
    cuts: tuple[Any, ...]
    codes: Mapping[tuple[str, int], np.ndarray]  # (T, Q) by cut id and turn
    bad: Mapping[str, str] = field(default_factory=dict)  # dialogues that must be left out, and why


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of one folder.

    Equal dialogues give equal bytes, but for Opus, whose streams carry a random number.
    """

    folder: Path
    fields: tuple[str, ...]  # the same in every shard
    audio: str | None  # a key of AUDIO_FORMATS; None keeps no audio
    codes_of: CodesOf | None
    skip_bad: bool = False
    features: FeatureMaker | None = None  # None keeps none

    def __call__(self, task: ShardTask) -> ShardIndex:
        """Write a shard, or take the one that is there and whole.

        Raises:
            BadData: A dialogue cannot be stored and ``skip_bad`` is not set.
        """
        found = self._finished(task.number)
        return self._write(task) if found is None else found

    def _finished(self, number: int) -> ShardIndex | None:
        """Index of a shard that an earlier run has finished."""
        file = self.folder / index_name(number)
        if not file.is_file():
            return None
        index = ShardIndex.from_json(file.read_bytes(), str(file))
        files = {self.folder / tar_name(name, number): one.bytes for name, one in index.fields.items()}
        whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
        whole &= (self.folder / manifest_name(number)).is_file() and sorted(index.fields) == sorted(self.fields)
        return index if whole else None

    def _write(self, task: ShardTask) -> ShardIndex:
        drafts = {name: self.folder / draft_name(tar_name(name, task.number)) for name in self.fields}
        dtype = self._code_dtype(task.codes.values())
        columns = next((codes.shape[1] for codes in task.codes.values()), 1)
        with ExitStack() as opened:
            tars = {name: opened.enter_context(TarField(draft)) for name, draft in drafts.items()}
            shard = _Shard(tars, self.audio, self.codes_of, dtype, self.features)
            refused: dict[str, str] = {}
            for cuts in _portions(task.cuts, HEARD_SECONDS if self.features is not None else 0.0):
                tried = [self._tried(refused, cut.id, partial(shard.read, cut, task)) for cut in cuts]
                read = [one for one in tried if one is not None]
                shard.hear(read)
                for one in read:
                    self._tried(refused, one.cut.id, partial(shard.write, one))
            left_out = [{"id": cut.id, "reason": refused[cut.id]} for cut in task.cuts if cut.id in refused]
            kinds = {CODES: (dtype, columns)}
            if self.features is not None:
                kinds[FEATURES] = (self.features.dtype, self.features.encoder.dim)
            fields = {name: tar.finish(*kinds.get(name, ())) for name, tar in tars.items()}
        return self._publish(task.number, fields, shard, left_out)

    def _tried(self, refused: dict[str, str], name: str, step: Callable[[], T_]) -> T_ | None:
        """What a step gives; the reason is kept where a dialogue cannot be stored and may be left out."""
        try:
            return step()
        except (ValueError, OSError) as error:
            if not self.skip_bad:
                raise
            refused[name] = str(error)
            return None

    def _publish(
        self, number: int, fields: dict[str, FieldIndex], shard: _Shard, left_out: list[dict[str, str]]
    ) -> ShardIndex:
        """Give everything its name, the index last: a shard that has one is whole."""
        lines = "".join(shard.lines).encode()
        digest = hashlib.blake2b(lines, digest_size=8).hexdigest()
        index = ShardIndex(len(shard.lines), digest, fields, {**shard.counts, "left_out": left_out})
        texts = {
            manifest_name(number): gzip.compress(lines, 6, mtime=0),
            index_name(number): index.to_json().encode(),
        }
        for name, data in texts.items():
            (self.folder / draft_name(name)).write_bytes(data)
        for name in [*(tar_name(one, number) for one in fields), *texts]:
            os.replace(self.folder / draft_name(name), self.folder / name)
        return index

    def _code_dtype(self, codes: Any) -> str:
        """The smallest type that takes every code of the tokenizer, or of the shard where no tokenizer is known."""
        largest = self.codes_of.largest if self.codes_of is not None else None
        if largest is None:
            largest = max((int(one.max()) for one in codes), default=0)
        return next(name for name in CODE_DTYPES if largest <= np.iinfo(name).max)


@dataclass
class _Read:
    """A dialogue on its way into a shard."""

    cut: Any
    codes: Mapping[int, np.ndarray]  # by turn
    members: dict[str, tuple[str, bytes, dict[str, Any], int]] = field(default_factory=dict)  # of the tars
    sounds: Mapping[int, tuple[np.ndarray, int]] = field(default_factory=dict)  # of the user's turns, with their rate
    heard: Mapping[int, tuple[np.ndarray, int]] = field(default_factory=dict)  # features of these
    clipped: int = 0  # samples


class _Shard:
    """Lines of the manifest and members of the tars, dialogue by dialogue."""

    def __init__(
        self,
        tars: Mapping[str, TarField],
        audio: str | None,
        codes_of: CodesOf | None,
        dtype: str,
        features: FeatureMaker | None = None,
    ) -> None:
        self.tars, self.audio, self.codes_of, self.dtype, self.features = tars, audio, codes_of, dtype, features
        self.features_of = None if features is None else asdict(FeaturesOf.of(features.encoder))
        self.lines: list[str] = []
        self.counts: dict[str, float] = dict.fromkeys(
            ("turns", "user_seconds", "assistant_seconds", "code_frames", "clipped_samples"), 0
        )

    def read(self, cut: Any, task: ShardTask) -> _Read:
        """Sound and codes of a dialogue; what is wrong is told before anything is written.

        Raises:
            ValueError: It cannot be stored.
        """
        if cut.id in task.bad:
            raise ValueError(task.bad[cut.id])
        turns = range(len(cut.supervisions))
        read = _Read(cut, {i: task.codes[cut.id, i] for i in turns if (cut.id, i) in task.codes})
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

    def hear(self, dialogues: Sequence[_Read]) -> None:
        """Let the encoder hear the users of some dialogues, all at once."""
        if self.features is None:
            return
        found = iter(self.features([sound for one in dialogues for sound in one.sounds.values()]))
        for one in dialogues:
            one.heard = {i: next(found) for i in one.sounds}

    def write(self, read: _Read) -> None:
        """Append a dialogue.

        Raises:
            ValueError: Its features have no place in the type that they are kept in.
        """
        cut, codes, heard, members = read.cut, read.codes, read.heard, read.members
        placeholders = {name: told for name, (_, _, told, _) in members.items()}
        record = shard_record(cut, placeholders, codes, self.codes_of, heard, self.features_of)
        if heard:
            frames = np.concatenate([features for features, _ in heard.values()])
            if not np.isfinite(frames).all():
                told = f"dialogue {cut.id!r}: features that {frames.dtype} cannot hold"
                raise ValueError(f"{told}; keep them as float32 (feature_dtype)")
            data = npy_bytes(frames)
            members[FEATURES] = ("npy", data, array_placeholder(frames.shape), len(data) - frames.nbytes)
        if codes:
            grid = np.concatenate([codes[i] for i in sorted(codes)]).astype(self.dtype)
            data = npy_bytes(grid)
            members[CODES] = ("npy", data, array_placeholder(grid.shape), len(data) - grid.nbytes)
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


def _portions(cuts: Sequence[Any], seconds: float) -> Iterator[list[Any]]:
    """Cuts in their order, as many at a time as have so much sound of the user; one where ``seconds`` is 0."""
    taken: list[Any] = []
    sound = 0.0
    for cut in cuts:
        taken.append(cut)
        sound += cut.duration if cut.has_recording else 0.0
        if sound >= seconds:
            yield taken
            taken, sound = [], 0.0
    if taken:
        yield taken


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


def npy_bytes(array: np.ndarray) -> bytes:
    """An npy file."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
