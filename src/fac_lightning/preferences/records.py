"""Lines of manifests that other people's judges wrote: prompts and answers, with files of sound beside them.

A turn is a text, or ``{"text": ..., "audio": file}``, or ``{"dialogue": id, "turn": n}`` of a dialogues folder. What
else stands in it is kept: labels, scores, ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Turn, dialogue_of_cut, read_cuts

__all__ = ["RecordReader", "read_lines"]

OF_TURNS = {"text", "audio", "dialogue", "turn", "role"}


def read_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a JSON-lines file or of a JSON file with a list, each with its line or place from 1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is no JSON object.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a JSON-lines file, or a JSON file with a list")
    text = file.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            found = list(enumerate(json.loads(text), start=1))
        else:
            found = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file}: no JSON ({error})") from error
    for number, record in found:
        if not isinstance(record, dict):
            raise ValueError(f"{file}, line {number}: a {type(record).__name__} where a JSON object is due")
        yield number, record


class RecordReader:
    """Turns that records name.

    Args:
        folder: Sound files are named relative to it.
        dialogues: Dialogues folder that records may name turns of.
    """

    def __init__(self, folder: Path, dialogues: str | None) -> None:
        self.folder = folder
        self._cuts = {} if dialogues is None else {cut.id: cut for cut in read_cuts(dialogues)}
        self._dialogues = dialogues

    def prompt(self, record: Mapping[str, Any]) -> tuple[tuple[Turn, ...], str | None]:
        """Turns before the answers, and their system prompt.

        Raises:
            KeyError: The record has no prompt.
            ValueError: It does not end with the user's turn, or what it names is not there.
        """
        if "dialogue" in record:
            found = dialogue_of_cut(self._cut(str(record["dialogue"])))
            turns, system = found.turns[: int(record.get("turns", 1))], record.get("system", found.system)
        else:
            written = record["prompt"]
            written = written if isinstance(written, list) else [written]
            turns, system = tuple(self.turn(turn, "user")[0] for turn in written), record.get("system")
        if not turns or turns[-1].role != "user":
            raise ValueError(f"a prompt ends with a turn of the user, this one has {[turn.role for turn in turns]}")
        return turns, system

    def turn(self, written: str | Mapping[str, Any], role: str) -> tuple[Turn, dict[str, Any]]:
        """A turn, and what else was said of it.

        Raises:
            KeyError: It has no text.
            ValueError: What it names is not there.
        """
        if isinstance(written, str):
            return Turn(role, written), {}  # type: ignore[arg-type]
        rest = {name: value for name, value in written.items() if name not in OF_TURNS}
        role = str(written.get("role", role))
        if "dialogue" in written:
            turns = dialogue_of_cut(self._cut(str(written["dialogue"]))).turns
            place = int(written["turn"])
            if not 0 <= place < len(turns) or turns[place].role != role:
                raise ValueError(
                    f"turn {place} of dialogue {written['dialogue']!r} is no turn of the {role}; it has "
                    f"{[turn.role for turn in turns]}"
                )
            return turns[place], rest
        audio, rate = self._audio(str(written["audio"])) if "audio" in written else (None, None)
        if role not in ("user", "assistant"):
            raise ValueError(f"the role {role!r} is neither 'user' nor 'assistant'")
        return Turn(role, str(written["text"]), audio, rate), rest  # type: ignore[arg-type]

    def _cut(self, name: str) -> Any:
        if name not in self._cuts:
            where = f"{self._dialogues} has no such dialogue" if self._dialogues else "no dialogues folder is given"
            raise ValueError(f"the dialogue {name!r} is named, but {where}")
        return self._cuts[name]

    def _audio(self, name: str) -> tuple[np.ndarray, int]:
        import soundfile

        try:
            samples, rate = soundfile.read(self.folder / name, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"the sound file {name!r} cannot be read from {self.folder}: {error}") from error
        return samples.mean(axis=1), rate
