"""Pairs that others ranked: a file of chosen and rejected answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fac_lightning.data.dialogue import Turn
from fac_lightning.preferences.base import LoadRun, PairBuilder
from fac_lightning.preferences.folder import PairFolder
from fac_lightning.preferences.records import RecordReader, read_lines

__all__ = ["ManifestPairs"]

OF_PAIRS = {"id", "dialogue", "turns", "prompt", "chosen", "rejected", "system", "mode"}


@dataclass(frozen=True)
class ManifestPairs(PairBuilder):
    """Take pairs as a file gives them: JSON lines, or a JSON list.

    A line has a prompt and two answers, each a text, a text with a sound file, or a turn of a dialogue; where both
    answers have a ``score``, it is kept as the measure:

        {"id": "p1", "prompt": {"text": "How do I look?", "audio": "p1.wav"}, "system": "Be kind.",
         "chosen": {"text": "Lovely!", "audio": "warm.wav", "score": 4}, "rejected": {"text": "Bad.", "score": 1}}

    Args:
        path: The file; sound files are named relative to its folder.
        out: Folder of the pairs.
        dialogues: Dialogues folder that lines may name turns of.
        task: Family of the pairs.
    """

    measure: ClassVar[str] = "the file's own score, more is better; 1 and 0 where it has none"

    path: str
    out: str
    dialogues: str | None = None
    task: str = "preference"

    def build(self, folder: PairFolder, load_run: LoadRun | None) -> None:
        """Every line.

        Raises:
            ValueError: A line is no pair; the message names it.
        """
        reader = RecordReader(Path(self.path).parent, self.dialogues)
        for number, record in read_lines(self.path):
            try:
                self._write(folder, reader, self.record(record), number)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: no pair ({type(error).__name__}: {error}); a line is "
                    '{"id": ..., "prompt": ..., "chosen": ..., "rejected": ...}'
                ) from error

    def record(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line of the file in the form above."""
        return dict(line)

    def _write(self, folder: PairFolder, reader: RecordReader, record: dict[str, Any], number: int) -> None:
        prompt, system = reader.prompt(record)
        chosen, better = reader.turn(record["chosen"], "assistant")
        rejected, worse = reader.turn(record["rejected"], "assistant")
        if chosen.text == rejected.text and not _spoken(chosen) and not _spoken(rejected):
            folder.leave_out("both answers are the same")
            return
        scores = (1.0, 0.0)
        if "score" in better and "score" in worse:
            scores = (float(better["score"]), float(worse["score"]))
        custom = {name: value for name, value in record.items() if name not in OF_PAIRS}
        custom.update(chosen_info=better, rejected_info=worse)
        name = str(record.get("id", number))
        folder.write(name, prompt, chosen, rejected, scores, system, record.get("mode"), custom)


def _spoken(turn: Turn) -> bool:
    return turn.audio is not None or turn.codes is not None
