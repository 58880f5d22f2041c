"""The pass of a check over records: what is wrong with them, and the audio that is to be looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.audio import DeclaredAudio
from fac_lightning.data.intake.cases import WARNINGS
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.lines import read_lines
from fac_lightning.data.intake.places import DataPlace
from fac_lightning.data.intake.records import audio_pieces, check_record
from fac_lightning.data.intake.shar import check_fields, list_fields
from fac_lightning.data.intake.sources import SourceGate

__all__ = ["AudioTask", "DataSurvey", "FieldTask"]

# With one of these, what a record says of its audio is not to be used.
NO_AUDIO = frozenset({"FAC-D07", "FAC-D10", "FAC-D15"})


@dataclass(frozen=True)
class AudioTask:
    """A sound file to look at."""

    key: str
    where: str  # of the first record that names it
    source: str
    declared: DeclaredAudio | None  # None where there is no manifest
    recording: Mapping[str, Any] | None = None  # where lhotse alone can read it
    base: str = ""  # what its paths count from, then


@dataclass(frozen=True)
class FieldTask:
    """A field of a shard to look at."""

    key: str
    path: Path
    ids: tuple[str, ...]


@dataclass
class DataSurvey:
    """What is known of data before any audio is opened."""

    limits: IntakeLimits
    required: Sequence[str] = ()  # fields of Shar
    problems: list[BadData] = field(default_factory=list)
    records: int = 0
    bad: set[int] = field(default_factory=set)  # numbers of records
    audio: dict[str, AudioTask] = field(default_factory=dict)
    fields: list[FieldTask] = field(default_factory=list)
    users: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)  # records of a file, or of a cut in it

    def record(self) -> int:
        """Number of a new record."""
        self.records += 1
        return self.records

    def tell(self, problem: BadData, records: Sequence[int]) -> None:
        """A problem, and the records that it makes bad."""
        self.problems.append(problem)
        if problem.code not in WARNINGS:
            self.bad.update(records)

    def read(self, place: DataPlace) -> None:
        """The records of a place."""
        if place.kind == "shar":
            self._shar(place.path)
        elif place.kind == "audio":
            key = str(place.path)
            self.users.setdefault((key, None), []).append(self.record())
            self.audio[key] = AudioTask(key, key, key, None)
        else:
            gate = SourceGate(place.path.parent, self.limits)
            for _ in self._manifest(place.path, gate, True if place.kind == "dialogues" else None):
                pass

    def _manifest(
        self, file: Path, gate: SourceGate, dialogues: bool | None
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Number and content of every record that is one."""
        for line, record in read_lines(file, unique=True):
            number, where = self.record(), f"{file}, line {line}"
            if isinstance(record, BadData):
                self.tell(record, [number])
                continue
            problems = check_record(record, where, gate, self.limits, dialogues)
            for problem in problems:
                self.tell(problem, [number])
            if not any(problem.code in NO_AUDIO for problem in problems):
                self._audio(record, f"{where}, cut {record['id']!r}", gate, number)
            yield number, record

    def _audio(self, record: Mapping[str, Any], where: str, gate: SourceGate, number: int) -> None:
        for piece in audio_pieces(record):
            told = piece.recording
            for source in told["sources"]:
                if source["type"] == "shar":
                    continue
                declared = DeclaredAudio(int(told["sampling_rate"]), int(told["num_samples"]), len(source["channels"]))
                path = gate.path(source["source"]) if source["type"] == "file" else str(source["source"])
                own = source["type"] == "file" and not told.get("transforms")
                key = f"{path} {declared} {own}"
                self.users.setdefault((key, None), []).append(number)
                if key not in self.audio:
                    place = f"{where}, {piece.field}, {path}"
                    recording = None if own else told
                    self.audio[key] = AudioTask(key, place, path, declared, recording, str(gate.base))

    def _shar(self, folder: Path) -> None:
        found = list_fields(folder)
        gate = SourceGate(folder, self.limits, placeholders=True)
        asked: dict[str, list[int]] = {name: [] for name in self.required}
        shards: dict[str, dict[str, int]] = {}
        for shard, file in found.get("cuts", {}).items():
            shards[shard] = {}
            for number, record in self._manifest(file, gate, None):
                shards[shard][str(record["id"])] = number
                for name in _placeholders(record):
                    asked.setdefault(name, []).append(number)
        for problem in check_fields(folder, found, asked):
            self.tell(problem, [])
        for name in asked.keys() - found.keys():
            everyone = [number for numbers in shards.values() for number in numbers.values()]
            self.bad.update(everyone if name in self.required else asked[name])
        for name in found.keys() - {"cuts"}:
            for shard, numbers in shards.items():
                if shard in found[name]:
                    self._field(found[name][shard], numbers)
                else:
                    self.bad.update(numbers.values())

    def _field(self, path: Path, numbers: Mapping[str, int]) -> None:
        self.fields.append(FieldTask(str(path), path, tuple(numbers)))
        self.users[str(path), None] = list(numbers.values())
        self.users.update({(str(path), cut): [number] for cut, number in numbers.items()})


def _placeholders(record: Mapping[str, Any]) -> list[str]:
    """Fields of a cut whose data lie in tar files beside it."""
    held = {"recording": record.get("recording"), "features": record.get("features"), **(record.get("custom") or {})}
    return [name for name, value in held.items() if isinstance(value, Mapping) and _is_placeholder(value)]


def _is_placeholder(value: Mapping[str, Any]) -> bool:
    array = value.get("array")
    inner = array if isinstance(array, Mapping) else value
    sources = value.get("sources") or ()
    return inner.get("storage_type") == "shar" or any(source.get("type") == "shar" for source in sources)
