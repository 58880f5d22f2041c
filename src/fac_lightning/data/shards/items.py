"""The dialogues of an open shard as layout takes them."""

from __future__ import annotations

import numpy as np

from fac_lightning.data.layout import Clip, SpokenTurn
from fac_lightning.data.row_source import CorpusItem
from fac_lightning.data.shards.audio import LastRecording, TurnAudio
from fac_lightning.data.shards.shard import Shard, StoredDialogue
from fac_lightning.types import SpeechGeometry

__all__ = ["ShardItems"]


class ShardItems:
    """Dialogues of one shard, each made when it is first asked for.

    Args:
        shard: Where they are.
        geometry: Sizes of the model; None leaves speech out.
        hears: Whether users' turns have their sound.
        says: Whether the assistant's turns have their codes.
        last: Keeps the recording that was decoded last.
        hop_length: Samples per frame of the stored features that stand for the users' sound; 0: their sound.
        tokenised: The shard has the texts as token ids, by the text tokenizer of the training.
    """

    def __init__(
        self,
        shard: Shard,
        geometry: SpeechGeometry | None,
        hears: bool,
        says: bool,
        last: LastRecording,
        hop_length: int = 0,
        tokenised: bool = False,
    ) -> None:
        self.hop_length, self.tokenised = hop_length, tokenised
        self.shard, self.geometry, self.hears, self.says, self.last = shard, geometry, hears, says, last
        self._sketches: list[CorpusItem | None] = [None] * len(shard)
        self._checked = False
        self._blank = np.zeros(
            (max(shard.frames, default=0), shard.num_codebooks), np.uint8
        )  # stand-ins are views of it

    def sketch(self, row: int) -> CorpusItem:
        """A dialogue as packing plans with it: no more than manifest and token ids are read, codes are all zero."""
        found = self._sketches[row]
        if found is None:
            found = self._sketches[row] = self._make(row)
        return found

    def item(self, row: int) -> CorpusItem:
        """A dialogue with its codes.

        Raises:
            ValueError: They are not codes of the model's sizes.
        """
        sketch = self._sketches[row]
        if not self.says or not self.shard.frames[row]:
            return self._make(row) if sketch is None else sketch
        codes = self._codes(row)
        return self._make(row, codes) if sketch is None else _with_codes(sketch, codes)

    def _codes(self, row: int) -> np.ndarray:
        codes = self.shard.codes(row)
        if not self._checked and self.geometry is not None:
            books, largest = self.shard.num_codebooks, self.shard.largest_code()
            if books != self.geometry.num_codebooks or largest >= self.geometry.codebook_size:
                raise ValueError(
                    f"{self.shard.where} has {books} codebook(s) with codes up to {largest}, the model "
                    f"{self.geometry.num_codebooks} with codes below {self.geometry.codebook_size}; build the model "
                    "with the sizes of the tokenizer that made them"
                )
            self._checked = True
        return codes

    def _make(self, row: int, codes: np.ndarray | None = None) -> CorpusItem:
        """A dialogue from its line, with ``codes`` ``(T, Q)`` of all its turns, or with stand-ins."""
        dialogue = self.shard.dialogue(row)
        turns: list[SpokenTurn] = []
        unwritten, first = False, 0
        heard = self.shard.features(row, dialogue, self.hop_length) if self.hop_length else {}
        told_turns = dialogue.record["supervisions"]
        ids = self.shard.text_ids(row, dialogue) if self.tokenised else [None] * len(told_turns)
        for i, told in enumerate(told_turns):
            span = dialogue.span(i)
            if told["speaker"] == "assistant":
                frames = self._frames(dialogue, i) if self.says else 0
                said = (self._blank if codes is None else codes[first:])[:frames] if frames else None
                first += frames
                turns.append(SpokenTurn("assistant", told["text"], None, said, told["duration"], ids[i]))
                continue
            unwritten |= (span is not None or i in heard) and not told["text"].strip()
            clip = None
            if i in heard and self.hears:
                clip = Clip(*heard[i], self.hop_length)
            elif span is not None and self.hears and self.geometry is not None:
                audio = TurnAudio(*span, self.geometry.sample_rate, self.last)
                clip = Clip(audio.num_samples, audio)
            turns.append(SpokenTurn("user", told["text"], clip, ids=ids[i]))
        system = (dialogue.record.get("custom") or {}).get("system")
        return CorpusItem(dialogue.id, tuple(turns), system, unwritten)

    def _frames(self, dialogue: StoredDialogue, turn: int) -> int:
        """Frames of codes of a turn; 0 where it has no speech."""
        frames = dialogue.code_frames[turn]
        if not frames and dialogue.span(turn) is not None:
            raise ValueError(
                f"{self.shard.where}, dialogue {dialogue.id!r}, turn {turn}: a spoken reply without codes, and the "
                "modes say it; name the tokenizer when the shards are written (fac data shard --codes), or take modes "
                "that do not speak"
            )
        return frames


def _with_codes(sketch: CorpusItem, codes: np.ndarray) -> CorpusItem:
    """The dialogue with codes ``(T, Q)`` in place of its stand-ins."""
    turns, first = [], 0
    for turn in sketch.turns:
        if turn.codes is not None:
            last = first + len(turn.codes)
            turn = SpokenTurn(turn.role, turn.text, None, codes[first:last], turn.seconds, turn.ids)
            first = last
        turns.append(turn)
    return CorpusItem(sketch.id, tuple(turns), sketch.system, sketch.unwritten)
