"""Where the text of synthetic dialogues comes from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

from fac_lightning.data.dialogue import Dialogue, Turn

__all__ = ["DialogueSource", "JsonlDialogues"]


class DialogueSource(ABC):
    """Gives dialogues without audio; the same call gives the same dialogues in the same order."""

    @abstractmethod
    def dialogues(self, select: str) -> list[Dialogue]:
        """Text-only dialogues of one part of the source; dialogues with the same answers stand together."""


class JsonlDialogues(DialogueSource):
    """Dialogues of a JSON-lines file: ``{"id": "a1", "turns": [{"role": "user", "text": "Hi."}, ...]}`` a line.

    A line may also have "system" (a system prompt), "split" (any name, "train" when absent) and "custom".

    Args:
        path: The file, UTF-8.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def dialogues(self, select: str = "train") -> list[Dialogue]:
        """Dialogues whose "split" is ``select``, in the order of the file.

        Raises:
            ValueError: A line is not such a dialogue, an id appears twice, or nothing has this split.
        """
        found: list[Dialogue] = []
        ids: set[str] = set()
        splits: set[str] = set()
        for number, line in enumerate(Path(self.path).read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                record = json.loads(line)
                turns = tuple(Turn(turn["role"], str(turn["text"])) for turn in record["turns"])
                dialogue = Dialogue(str(record["id"]), turns, record.get("system"), record.get("custom", {}))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'{where}: {type(error).__name__}: {error}; a line is {{"id": ..., "turns": [{{"role": "user", '
                    '"text": ...}, ...]}'
                ) from error
            if wrong := {turn.role for turn in turns} - {"user", "assistant"}:
                raise ValueError(f"{where}: role {wrong.pop()!r}; choose from 'user', 'assistant'")
            if not turns or any(not turn.text.strip() for turn in turns):
                raise ValueError(f"{where}: dialogue {dialogue.id!r} has no turns, or a turn without text")
            if dialogue.id in ids:
                raise ValueError(f"{where}: id {dialogue.id!r} appears twice")
            ids.add(dialogue.id)
            splits.add(record.get("split", "train"))
            if record.get("split", "train") == select:
                found.append(dialogue)
        if not found:
            raise ValueError(f"{self.path} has no dialogue of split {select!r}; it has {sorted(splits) or 'no lines'}")
        return found
