"""The stereo recordings of moshi-finetune become dialogues folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Dialogue, Role, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import DialogueImport, Pending
from fac_lightning.data.importers.json_records import read_json, read_json_records
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sound import Sound, read_samples, sound_of_samples, spoken_turn
from fac_lightning.data.importers.told import bad_field, missing_file

__all__ = ["MoshiImport"]

TOLERANCE = 0.1  # seconds by which a recording and its manifest may differ; words have their own times
MAIN = "SPEAKER_MAIN"  # whose words moshi-finetune's own annotation has


@dataclass
class _Run:
    """Words of one speaker without a long pause."""

    role: Role
    words: list[tuple[str, float, float]] = field(default_factory=list)  # word, start and end in seconds

    @property
    def start(self) -> float:
        return min(start for _, start, _ in self.words)

    @property
    def end(self) -> float:
        return max(end for _, _, end in self.words)


class MoshiImport(DialogueImport):
    """Job: moshi-finetune's stereo recordings with word alignments become a dialogues folder.

    A line is ``{"path": ..., "duration": ...}``; beside the recording lies a JSON file of the same name,
    ``{"alignments": [[word, [start, end], speaker], ...]}``. Words of one speaker make a turn up to a pause; turns are
    in the order of their beginnings. The ``start`` and ``end`` of a turn in the recording, and its ``words`` with
    theirs, are kept in its ``custom``, so what overlaps can be laid out in time again; what is outside of all turns is
    not copied.

    The alignments that moshi-finetune makes have the words of the assistant alone. Then the user's turns are what
    sounds on the user's channel between the assistant's turns, and have no text.

    Args:
        source: JSON-lines file.
        out: Dialogues folder.
        assistant_channel: Of the recording, from 0; the user is on the other one. Moshi is on the left.
        assistant_speaker: Whose words in the alignments are the assistant's; all others are the user's.
        gap: Seconds of pause in which one turn ends.
        margin: Seconds of sound kept before and after a turn's words, as far as the neighbours leave room.
        silence: Root mean square in dBFS below which the user, without words, says nothing.
        options: Rules; the plain ones when None.
    """

    def __init__(
        self,
        source: str,
        out: str,
        assistant_channel: int = 0,
        assistant_speaker: str = MAIN,
        gap: float = 1.0,
        margin: float = 0.1,
        silence: float = -50.0,
        options: ImportOptions | None = None,
    ) -> None:
        super().__init__(source, out, options)
        if assistant_channel not in (0, 1):
            raise ValueError(f"assistant_channel must be 0 or 1, got {assistant_channel}")
        if gap < 0 or margin < 0:
            raise ValueError(f"gap and margin must be at least 0, got {gap} and {margin}")
        self.assistant_channel, self.assistant_speaker = assistant_channel, assistant_speaker
        self.gap, self.margin, self.silence = gap, margin, silence

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue a recording."""
        for where, record in read_json_records(self.source):
            if isinstance(record, BadData):
                yield record
            elif not isinstance(record.get("path"), str):
                yield bad_field(f"{where}, path", record.get("path"), "the path of a recording")
            else:
                name = str(Path(record["path"]).with_suffix(""))
                yield Pending(name, where, partial(self._dialogue, name, where, record))

    def _dialogue(self, name: str, where: str, record: Mapping[str, Any]) -> Dialogue:
        file = self.paths.file(record["path"], f"{where}, path")
        words = self._words(file.with_suffix(".json"), where)
        both, rate = read_samples(file, str(file), self.options)
        said = sound_of_samples(both, rate, str(file), self.options, self.assistant_channel)
        heard = sound_of_samples(both, rate, str(file), self.options, 1 - self.assistant_channel)
        seconds, told = len(said.samples) / said.sample_rate, record.get("duration")
        if told is not None and not (isinstance(told, int | float) and abs(told - seconds) <= TOLERANCE):
            rule = f"the {seconds:.3f} s of {file}"
            raise BadData(
                "FAC-A09", "duration other than in the manifest", where, told, rule, "Make the manifest again."
            )
        runs = self._runs(words)
        turns: list[tuple[float, Turn]] = []
        for role, sound in (("assistant", said), ("user", heard)):
            own = [run for run in runs if run.role == role]
            ends = [0.0, *(run.end for run in own)]
            starts = [*(run.start for run in own), seconds]
            for i, run in enumerate(own):
                first = max(run.start - self.margin, (ends[i] + run.start) / 2 if i else 0.0)
                last = min(run.end + self.margin, (run.end + starts[i + 1]) / 2 if i + 1 < len(own) else seconds)
                turns.append(
                    self._turn(run.role, " ".join(word for word, _, _ in run.words), sound, first, last, run.words)
                )
        if all(run.role == "assistant" for run in runs):
            turns += self._unwritten(heard, runs, seconds)
        if not turns:
            raise bad_field(where, words, "words in the alignments, or sound")
        turns.sort(key=lambda one: one[0])
        return Dialogue(name, tuple(turn for _, turn in turns), None, self.kept(record, {"path"}))

    def _words(self, file: Path, where: str) -> list[tuple[str, float, float, str]]:
        """Word, start, end and speaker."""
        if not file.is_file():
            raise missing_file(file, where, "FAC-D01")
        document = read_json(file)
        listed = document.get("alignments") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise bad_field(str(file), document, '{"alignments": [[word, [start, end], speaker], ...]}')
        found = []
        for i, one in enumerate(listed):
            try:
                word, (start, end), *speaker = one
                start, end = float(start), float(end)
            except (TypeError, ValueError):
                raise bad_field(f"{file}, alignments[{i}]", one, "[word, [start, end], speaker]") from None
            if not 0 <= start <= end < np.inf or not isinstance(word, str):
                raise bad_field(f"{file}, alignments[{i}]", one, "a word, and times that go forward from 0")
            found.append((word.strip(), start, end, speaker[0] if speaker else MAIN))
        return sorted(found, key=lambda one: one[1])

    def _runs(self, words: list[tuple[str, float, float, str]]) -> list[_Run]:
        """Words of each speaker, in the order of time, up to a pause."""
        runs: list[_Run] = []
        last: dict[Role, _Run] = {}
        for word, start, end, speaker in words:
            role: Role = "assistant" if speaker == self.assistant_speaker else "user"
            if role not in last or start - last[role].end > self.gap:
                last[role] = _Run(role)
                runs.append(last[role])
            last[role].words.append((word, start, end))
        return runs

    def _unwritten(self, heard: Sound, runs: list[_Run], seconds: float) -> list[tuple[float, Turn]]:
        """What sounds on the user's channel between the assistant's turns."""
        pauses = zip([0.0, *(run.end for run in runs)], [*(run.start for run in runs), seconds], strict=True)
        found = []
        for first, last in pauses:
            piece = heard.samples[round(first * heard.sample_rate) : round(last * heard.sample_rate)]
            level = float(np.sqrt(np.mean(piece.astype(np.float64) ** 2))) if len(piece) else 0.0
            if level > 10 ** (self.silence / 20):
                found.append(self._turn("user", "", heard, first, last, []))
        return found

    def _turn(
        self, role: Role, text: str, sound: Sound, start: float, end: float, words: list[tuple[str, float, float]]
    ) -> tuple[float, Turn]:
        """When it begins, and the turn."""
        rate = sound.sample_rate
        first, last = round(max(0.0, start) * rate), min(round(end * rate), len(sound.samples))
        if last <= first:
            told = f"{start:.3f} to {end:.3f} s"
            rule = f"a piece of the {len(sound.samples) / rate:.3f} s that there are"
            raise BadData("FAC-D09", "turn outside its audio", text[:60], told, rule, "Make the alignments again.")
        times: dict[str, Any] = {"start": first / rate, "end": last / rate}
        if words:
            times["words"] = [list(word) for word in words]
        piece = Sound(sound.samples[first:last], rate)
        return start, spoken_turn(role, text, piece, self.options, **times)
