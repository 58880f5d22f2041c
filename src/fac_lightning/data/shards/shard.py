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
from fac_lightning.data.shards.numbers import Numbers
from fac_lightning.data.shards.records import CODES, FEATURES, RECORDING, REPLIES, TEXTS

__all__ = ["Shard", "StoredDialogue"]


@dataclass(frozen=True)
class StoredDialogue:
    """A line of the manifest, checked, with the place of what belongs to it."""

    id: str
    record: Mapping[str, Any]
    sounds: Mapping[str, Sound]  # by field
    code_frames: tuple[int, ...]  # of each turn
    token_counts: tuple[int, ...]  # of the text of each turn; 0 where texts were not tokenised

    def span(self, turn: int) -> tuple[Sound, int, int] | None:
        """Sound, first sample and samples of a turn; None for a turn without sound.

        Raises:
            BadData: It is not inside its recording.
        """
        if not self.sounds:
            return None
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
        self._codes, self._ids = (
            Numbers(self.storage, self.files.tars.get(name, ""), self.index.fields.get(name), self.index.rows)
            for name in (CODES, TEXTS)
        )
        self.frames = self._codes.counts  # of codes, of each dialogue

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
        return self._codes[row]

    def text_ids(self, row: int, dialogue: StoredDialogue) -> list[list[int]]:
        """Token ids of the text of each turn.

        Raises:
            BadData: The tar has others than the turns say.
        """
        ids = self._ids[row].ravel().tolist()
        if len(ids) != sum(dialogue.token_counts):
            told = f"{len(ids)} token ids where its turns have {sum(dialogue.token_counts)} (text_ids)"
            where = f"{self.where}, dialogue {dialogue.id!r}"
            raise bad_data("FAC-D14", where, told, "as many", what="token ids that do not go with their turns")
        found, first = [], 0
        for count in dialogue.token_counts:
            found.append(ids[first : first + count])
            first += count
        return found

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
        return int(self._codes.block.max()) if self._codes.block.size else -1

    @property
    def where(self) -> str:
        """Its manifest, for messages."""
        return self.storage.path(self.files.manifest)

    @property
    def num_codebooks(self) -> int:
        """Columns of the codes; 0 without codes."""
        return self._codes.columns

    def _dialogue(self, row: int, record: Mapping[str, Any], where: str) -> StoredDialogue:
        custom = record.get("custom") or {}
        sounds = {}
        for name, told in ((RECORDING, record.get("recording")), (REPLIES, custom.get(REPLIES))):
            field = self.index.fields.get(name)
            if told and field is not None and field.sizes[row] >= 0:
                place = (self.files.tars[name], field.offsets[row], field.sizes[row])
                rate, samples = int(told["sampling_rate"]), int(told["num_samples"])
                sounds[name] = Sound(self.storage, *place, rate, samples, record["id"])
        frames, tokens = [], []
        for i, turn in enumerate(record["supervisions"]):
            role, text = turn.get("speaker"), turn.get("text")
            if role not in ("user", "assistant") or text is None:
                told = f"turn {i} of speaker {role!r} with the text {text!r}"
                raise bad_data("FAC-D09", where, told, "'user' or 'assistant', and a text")
            own = turn.get("custom") or {}
            frames.append(int(own.get("code_frames", 0)))
            tokens.append(int(own.get("text_ids", 0)))
        if sum(frames) != self.frames[row]:
            self._take_all(row, record["supervisions"], frames, where)
        return StoredDialogue(record["id"], record, sounds, tuple(frames), tuple(tokens))

    def _take_all(self, row: int, turns: Sequence[Mapping[str, Any]], frames: list[int], where: str) -> None:
        """Where shards are written elsewhere, and no turn says how many frames are its own, give all to the one reply.

        Raises:
            BadData: The turns have others than the tar.
        """
        there, replies = self.frames[row], [i for i, turn in enumerate(turns) if turn["speaker"] == "assistant"]
        if any(frames) or len(replies) != 1:
            told = f"{there} frames of codes where its turns have {sum(frames)} (code_frames)"
            raise bad_data("FAC-D14", where, told, "as many", what="codes that do not go with their turns")
        frames[replies[0]] = there
