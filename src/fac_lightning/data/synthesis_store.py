"""Two stores of a synthesis: the spoken answers, and the list of what was rejected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fac_lightning.data.clips import SpokenClip
from fac_lightning.data.dialogue import Turn, load_turn_audio, read_cuts

__all__ = ["AnswerStore", "RejectList", "answer_id", "judgement"]


def answer_id(text: str) -> str:
    """Id of the dialogue that holds a spoken answer."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judgement(clip: SpokenClip) -> dict[str, Any]:
    """What a turn stores of how it was spoken and heard."""
    return {"voice": clip.voice, "seed": clip.seed, "wer": clip.wer, "asr_text": clip.asr_text}


class AnswerStore:
    """The spoken answers on disk, by text."""

    def __init__(self, folder: Path) -> None:
        self._cuts = {cut.supervisions[0].text: cut for cut in read_cuts(folder)}
        self._load = lru_cache(maxsize=64)(self._read)

    def __contains__(self, text: str) -> bool:
        return text in self._cuts

    def __call__(self, text: str) -> Turn:
        """The spoken turn of an answer that is in the store."""
        return self._load(text)

    def _read(self, text: str) -> Turn:
        cut = self._cuts[text]
        audio, rate = load_turn_audio(cut, 0)
        custom = {key: value for key, value in cut.supervisions[0].custom.items() if key != "spoken"}
        return Turn("assistant", text, audio, rate, custom)


class RejectList:
    """``rejected.jsonl`` of a folder: what was left out, and why."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rejected.jsonl"
        self.ids: set[str] = set()
        if self._path.exists():
            whole = self._path.read_bytes().rpartition(b"\n")[0]  # a crash may have cut the last line
            self._path.write_bytes(whole + b"\n" if whole else b"")
            self.ids = {json.loads(line)["id"] for line in whole.decode().splitlines()}
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> RejectList:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, id: str, clips: Sequence[SpokenClip], reason: str) -> None:
        """Append one line."""
        turns = [{"text": clip.text, **judgement(clip)} for clip in clips]
        self._file.write(json.dumps({"id": id, "reason": reason, "turns": turns}, ensure_ascii=False) + "\n")
        self._file.flush()
        self.ids.add(id)
