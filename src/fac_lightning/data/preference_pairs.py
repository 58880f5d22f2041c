"""Preference pairs on disk: one JSON object a line, over a folder of dialogues.

A pair names the dialogue whose first turns are the prompt, and two answers: each a turn of a dialogue in the same
folder (spoken there as audio or as codes), or written out.

    {"id": "p1", "task": "robustness", "dialogues": "../world", "prompt": {"dialogue": "d1", "turns": 1},
     "chosen": {"dialogue": "d1", "turn": 1}, "rejected": {"text": "No idea."}}

A line may also have "mode" (of ``prompts.MODES``), "weight" and "custom".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fac_lightning.data.manifest import drop_partial_line, read_records

__all__ = ["PreferencePair", "PreferenceWriter", "TurnAnswer", "WrittenAnswer", "read_pairs"]

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True)
class TurnAnswer:
    """An answer that is a turn of a dialogue."""

    dialogue: str  # id
    turn: int  # counted from 0


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer that is no dialogue's and is not spoken."""

    text: str


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better one named."""

    id: str
    dialogue: str  # id of the dialogue that asks
    turns: int  # its first turns that are the prompt
    chosen: TurnAnswer | WrittenAnswer
    rejected: TurnAnswer | WrittenAnswer
    task: str = "preference"  # family of the pair: its loss, streams and metrics
    mode: str | None = None  # of ``prompts.MODES``; that of the data module when None
    weight: float = 1.0  # of the pair's loss
    custom: dict[str, Any] = field(default_factory=dict)  # JSON values: who judged, by how much


class PreferenceWriter:
    """Write pairs to ``<folder>/pairs.jsonl`` so that an interrupted run can go on.

    Args:
        folder: Made when missing. A folder that already has pairs is continued; see ``done``.
        dialogues: Folder of the dialogues that pairs name; ``folder`` itself when None.
    """

    def __init__(self, folder: str | Path, dialogues: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / PAIRS_FILE
        # relative, so that both folders can move together
        self.dialogues = "." if dialogues is None else Path(os.path.relpath(dialogues, self.folder)).as_posix()
        self.done: set[str] = set()
        if self.path.exists():
            drop_partial_line(self.path)
            self.done = {record["id"] for record in read_records(self.path)}
        self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> PreferenceWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, pair: PreferencePair) -> None:
        """Append one pair.

        Raises:
            ValueError: The id is already there.
        """
        if pair.id in self.done:
            raise ValueError(f"pair {pair.id!r} is already in {self.path}; ids must be unique")
        self._file.write(json.dumps(_record(pair, self.dialogues), ensure_ascii=False) + "\n")
        self._file.flush()
        self.done.add(pair.id)


def read_pairs(path: str | Path) -> Iterator[tuple[Path, PreferencePair]]:
    """Pairs of a folder or of a ``pairs.jsonl``, each with the folder of its dialogues.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no pair; the message names file and line.
    """
    file = Path(path) / PAIRS_FILE if Path(path).is_dir() or not Path(path).suffix else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a folder of preference pairs (with {PAIRS_FILE})")
    for number, record in enumerate(read_records(file), start=1):
        try:
            pair = _pair(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f'{file}, line {number}: no preference pair ({type(error).__name__}: {error}); a line is {{"id": ..., '
                '"prompt": {"dialogue": ..., "turns": 1}, "chosen": {"dialogue": ..., "turn": 1}, "rejected": {"text": '
                "...}}"
            ) from error
        yield file.parent / record.get("dialogues", "."), pair


def _record(pair: PreferencePair, dialogues: str) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": pair.id,
        "task": pair.task,
        "dialogues": dialogues,
        "prompt": {"dialogue": pair.dialogue, "turns": pair.turns},
        "chosen": _answer_record(pair.chosen),
        "rejected": _answer_record(pair.rejected),
    }
    if pair.mode is not None:
        record["mode"] = pair.mode
    if pair.weight != 1:
        record["weight"] = pair.weight
    if pair.custom:
        record["custom"] = pair.custom
    return record


def _answer_record(answer: TurnAnswer | WrittenAnswer) -> dict[str, Any]:
    if isinstance(answer, TurnAnswer):
        return {"dialogue": answer.dialogue, "turn": answer.turn}
    return {"text": answer.text}


def _pair(record: Mapping[str, Any]) -> PreferencePair:
    return PreferencePair(
        id=str(record["id"]),
        dialogue=str(record["prompt"]["dialogue"]),
        turns=int(record["prompt"]["turns"]),
        chosen=_answer(record["chosen"]),
        rejected=_answer(record["rejected"]),
        task=str(record.get("task", "preference")),
        mode=record.get("mode"),
        weight=float(record.get("weight", 1.0)),
        custom=dict(record.get("custom", {})),
    )


def _answer(record: Mapping[str, Any]) -> TurnAnswer | WrittenAnswer:
    if "dialogue" in record:
        return TurnAnswer(str(record["dialogue"]), int(record["turn"]))
    return WrittenAnswer(str(record["text"]))
