"""Candidates that a file lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fac_lightning.preferences.base import LoadRun
from fac_lightning.preferences.candidates import Candidate, CandidateGroup, CandidateSource
from fac_lightning.preferences.records import RecordReader, read_lines

__all__ = ["ManifestCandidates"]

OF_GROUPS = {"id", "dialogue", "turns", "prompt", "answers", "reference", "system", "mode"}


@dataclass(frozen=True)
class ManifestCandidates(CandidateSource):
    """Candidates of a JSON-lines file, with what others said of them.

    A line has a prompt and its answers, each a text, a text with a sound file, or a turn of a dialogue:

        {"id": "q1", "prompt": {"text": "Is it raining?", "audio": "q1.wav"}, "reference": "Yes, it is.",
         "answers": [{"text": "Yes.", "correct": true}, {"text": "No.", "correct": false}]}
        {"id": "q2", "dialogue": "d7", "turns": 1, "style": "fast",
         "answers": [{"dialogue": "d7", "turn": 1}, {"dialogue": "d7-slow", "turn": 0}]}

    Args:
        path: The file; sound files are named relative to its folder.
        dialogues: Dialogues folder that lines may name turns of.
    """

    path: str
    dialogues: str | None = None

    def groups(self, load_run: LoadRun | None, leave_out: Callable[[str], None]) -> Iterator[CandidateGroup]:
        """One group per line.

        Raises:
            ValueError: A line is none; the message names it.
        """
        reader = RecordReader(Path(self.path).parent, self.dialogues)
        for number, record in read_lines(self.path):
            try:
                prompt, system = reader.prompt(record)
                answers = [reader.turn(answer, "assistant") for answer in record["answers"]]
                known = "reference" in record
                reference = reader.turn(record["reference"], "assistant")[0] if known else None
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: no candidates ({type(error).__name__}: {error}); a line is "
                    '{"id": ..., "prompt": ..., "answers": [{"text": ...}, ...]}'
                ) from error
            custom = {name: value for name, value in record.items() if name not in OF_GROUPS}
            yield CandidateGroup(
                str(record.get("id", number)),
                prompt,
                tuple(Candidate(turn, turn.audio, turn.sample_rate, True, rest) for turn, rest in answers),
                reference,
                system,
                record.get("mode"),
                custom,
            )
