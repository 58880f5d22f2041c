"""An open shard: its dialogues with texts and lengths, its codes as one block, its sound where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.audio import Sound
from fac_lightning.data.shards.features import TurnFeatures
from fac_lightning.data.shards.folder import ShardFolder, parse_line
from fac_lightning.data.shards.index import FieldIndex
from fac_lightning.data.shards.records import CODES, FEATURES, RECORDING, REPLIES
from fac_lightning.data.shards.storage import Storage

__all__ = ["Shard", "StoredDialogue", "read_codes"]


@dataclass(frozen=True)
class StoredDialogue:
    """A line of the manifest, checked, with the place of what belongs to it."""

    id: str
    record: Mapping[str, Any]
    sounds: Mapping[str, Sound]  # by field
    code_frames: tuple[int, ...]  # of each turn

    def span(self, turn: int) -> tuple[Sound, int, int] | None:
        """Sound, first sample and samples of a turn; None for a turn without sound.

        Raises:
            BadData: It is not inside its recording.
        """
        told = self.record["supervisions"][turn]
        sound = self.sounds.get(RECORDING if told["speaker"] == "user" else REPLIES)
        if sound is None or not (told.get("custom") or {}).get("spoken", True):
            return None
        first, count = round(told["start"] * sound.rate), round(told["duration"] * sound.rate)
        if first < 0 or first + count > sound.num_samples:
            where = f"{sound.storage.path(sound.tar)}, dialogue {self.id!r}, turn {turn}"
            told = f"samples {first} to {first + count} of {sound.num_samples}"
            raise bad_data("FAC-D09", where, told, "a turn inside its recording")
        return sound, first, count


class Shard:
    """One shard of a folder, its manifest read.

    Args:
        folder: Where it is.
        number: Which one.
    """

    def __init__(self, folder: ShardFolder, number: int) -> None:
        self.storage, self.files, self.index = folder.storage, folder.shards[number], folder.index(number)
        self._lines = folder.lines(number)
        if len(self._lines) != self.index.rows:
            told = f"{len(self._lines)} dialogues"
            raise bad_data("FAC-D11", self.where, told, f"{self.index.rows}, as the index says")
        self.frames = self._frames()
        self._code_ends = np.cumsum(self.frames).tolist()
        self._codes: np.ndarray | None = None

    def __len__(self) -> int:
        """Dialogues."""
        return len(self._lines)

    def dialogue(self, row: int) -> StoredDialogue:
        """What the manifest says of a dialogue; its line is read when it is asked for, and not remembered.

        Raises:
            BadData: The line is no record, or does not go with the tars.
        """
        where = f"{self.where}, line {row + 1}"
        record = parse_line(self._lines[row], where)
        try:
            return self._dialogue(row, record, where)
        except (KeyError, TypeError, AttributeError) as error:
            told, rule = repr(error), "a cut with its supervisions"
            raise bad_data("FAC-D15", where, told, rule, what="incomplete cut") from error

    def codes(self, row: int) -> np.ndarray:
        """Codes ``(T, Q)`` of a dialogue, of all its turns; the tar is read once, whole."""
        if self._codes is None:
            self._codes = read_codes(self.storage, self.files.tars[CODES], self.index.fields[CODES])
        codes: np.ndarray = self._codes
        return codes[self._code_ends[row - 1] if row else 0 : self._code_ends[row]]

    def features(self, row: int, dialogue: StoredDialogue, hop_length: int) -> dict[int, tuple[int, TurnFeatures]]:
        """Samples at the encoder's rate, and where its features are, by turn; nothing is read.

        Raises:
            BadData: The tar has others than the turns say.
        """
        field = self.index.fields.get(FEATURES)
        found: dict[int, tuple[int, TurnFeatures]] = {}
        if field is None or not field.dtype:
            return found
        width, at = np.dtype(field.dtype).itemsize * max(1, field.columns), 0
        for i, turn in enumerate(dialogue.record["supervisions"]):
            if (samples := (turn.get("custom") or {}).get("feature_samples")) is not None:
                frames = -(-int(samples) // hop_length)
                place = (self.files.tars[FEATURES], field.offsets[row] + at * width)
                found[i] = int(samples), TurnFeatures(self.storage, *place, frames, field.columns, field.dtype)
                at += frames
        if at * width != max(0, field.sizes[row]):
            told = f"{max(0, field.sizes[row])} bytes of features where its turns have {at} frames (feature_samples)"
            where = f"{self.where}, dialogue {dialogue.id!r}"
            raise bad_data("FAC-D14", where, told, "as many", what="features that do not go with their turns")
        return found

    def largest_code(self) -> int:
        """Of all codes of the shard."""
        self.codes(0)
        return int(self._codes.max()) if self._codes is not None and self._codes.size else -1

    @property
    def where(self) -> str:
        """Its manifest, for messages."""
        return self.storage.path(self.files.manifest)

    @property
    def num_codebooks(self) -> int:
        """Columns of the codes; 0 without codes."""
        return self.index.fields[CODES].columns if CODES in self.index.fields else 0

    def _dialogue(self, row: int, record: Mapping[str, Any], where: str) -> StoredDialogue:
        custom = record.get("custom") or {}
        sounds = {}
        for name, told in ((RECORDING, record.get("recording")), (REPLIES, custom.get(REPLIES))):
            field = self.index.fields.get(name)
            if told and field is not None and field.sizes[row] >= 0:
                tar = self.files.tars[name]
                place = (field.offsets[row], field.sizes[row])
                rate, samples = int(told["sampling_rate"]), int(told["num_samples"])
                sounds[name] = Sound(self.storage, tar, *place, rate, samples, record["id"])
        for i, turn in enumerate(record["supervisions"]):
            if turn.get("speaker") not in ("user", "assistant") or turn.get("text") is None:
                told = f"turn {i} of speaker {turn.get('speaker')!r} with the text {turn.get('text')!r}"
                raise bad_data("FAC-D09", where, told, "'user' or 'assistant', and a text")
        return StoredDialogue(record["id"], record, sounds, self._code_frames(row, record["supervisions"], where))

    def _frames(self) -> list[int]:
        """Frames of codes of each dialogue."""
        field = self.index.fields.get(CODES)
        if field is None or not field.dtype:
            return [0] * len(self)
        width = np.dtype(field.dtype).itemsize * max(1, field.columns)
        return [max(0, size) // width for size in field.sizes]

    def _code_frames(self, row: int, turns: Sequence[Mapping[str, Any]], where: str) -> tuple[int, ...]:
        """Frames of each turn, which must be those that the tar has."""
        there = self.frames[row]
        frames = [int((turn.get("custom") or {}).get("code_frames", 0)) for turn in turns]
        if there and not sum(frames):  # written elsewhere: all of it is the one reply
            replies = [i for i, turn in enumerate(turns) if turn["speaker"] == "assistant"]
            if len(replies) == 1:
                frames[replies[0]] = there
        if sum(frames) != there:
            told = f"{there} frames of codes where its turns have {sum(frames)} (code_frames)"
            raise bad_data("FAC-D14", where, told, "as many", what="codes that do not go with their turns")
        return tuple(frames)


def read_codes(storage: Storage, tar: str, field: FieldIndex) -> np.ndarray:
    """All codes ``(T, Q)`` of a shard.

    Raises:
        BadData: The tar is not as the index says.
    """
    if not field.dtype:
        return np.zeros((0, max(1, field.columns)), np.uint8)
    data, dtype = storage.read(tar), np.dtype(field.dtype)
    if len(data) != field.bytes or dtype.kind not in "iu":
        told = f"{len(data)} bytes, numbers of type {dtype}"
        raise bad_data("FAC-D11", storage.path(tar), told, f"{field.bytes} bytes of whole numbers")
    places = [(o, n) for o, n in zip(field.offsets, field.sizes, strict=True) if n > 0]
    flat = b"".join([data[offset : offset + size] for offset, size in places])
    return np.frombuffer(flat, dtype).reshape(-1, field.columns)
