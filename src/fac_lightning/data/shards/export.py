"""From shards back to dialogues."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fac_lightning.data.dialogue import RESERVED, RESERVED_OF_TURNS, Dialogue, Turn
from fac_lightning.data.shards.audio import LastRecording
from fac_lightning.data.shards.folder import ShardFolder
from fac_lightning.data.shards.records import TOLD, TOLD_OF_TURNS
from fac_lightning.data.shards.shard import Shard, StoredDialogue
from fac_lightning.data.turn_codes import TurnCodes

__all__ = ["read_shards"]

OURS, OURS_OF_TURNS = RESERVED | TOLD, RESERVED_OF_TURNS | TOLD_OF_TURNS


def read_shards(path: str, audio: bool = True) -> Iterator[Dialogue]:
    """Dialogues of shards, in order, as ``read_dialogues`` gives those of a folder.

    A reply whose audio is in the shards has its audio alone; one without has its codes.

    Args:
        path: Folder, URL, or pattern of manifests.
        audio: Read the audio of spoken turns; without it they have neither audio nor codes of it.

    Raises:
        BadData: The shards are damaged.
    """
    folder = ShardFolder(path)
    of = folder.codes_of()
    last = LastRecording()
    for number in range(len(folder.shards)):
        shard = Shard(folder, number)
        for row in range(len(shard)):
            dialogue = shard.dialogue(row)
            codes = shard.codes(row) if sum(dialogue.code_frames) else np.zeros((0, 1), np.uint8)
            name, rate = (of.tokenizer, of.frame_rate) if of is not None else ("unknown", 25.0)
            yield _dialogue(dialogue, codes, name, rate, last if audio else None)


def _dialogue(
    stored: StoredDialogue, codes: np.ndarray, tokenizer: str, frame_rate: float, last: LastRecording | None
) -> Dialogue:
    turns, first = [], 0
    for i, told in enumerate(stored.record["supervisions"]):
        span, frames = stored.span(i), stored.code_frames[i]
        made = TurnCodes(tokenizer, codes[first : first + frames], frame_rate) if frames and span is None else None
        first += frames
        custom = {k: v for k, v in (told.get("custom") or {}).items() if k not in OURS_OF_TURNS}
        samples, rate = None, None
        if span is not None and last is not None:
            sound, start, count = span
            samples = last.read(sound)[start : start + count].astype(np.float32) / 32768
            rate = sound.rate
        turns.append(Turn(told["speaker"], told["text"], samples, rate, custom, made))
    told = stored.record.get("custom") or {}
    custom = {k: v for k, v in told.items() if k not in OURS}
    return Dialogue(stored.id, tuple(turns), told.get("system"), custom)
