"""Kaldi's data directories become dialogues folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from fac_lightning.data.dialogue import Dialogue
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import Pending
from fac_lightning.data.importers.sound import read_sound
from fac_lightning.data.importers.speech_and_text import SpeechAndText
from fac_lightning.data.importers.told import bad_field
from fac_lightning.data.importers.trusted_paths import is_command

__all__ = ["KaldiImport"]

TABLES = ("wav.scp", "segments", "text", "utt2spk", "spk2gender", "utt2lang", "reco2dur", "utt2dur")
TOLERANCE = 0.04  # seconds by which a recording and its tables may differ: one speech token


class KaldiImport(SpeechAndText):
    """Job: a Kaldi data directory becomes a dialogues folder.

    ``wav.scp`` and ``text`` must be there; ``segments`` cuts recordings into utterances, ``utt2spk`` (with
    ``spk2gender``) and ``utt2lang`` are kept with the turn, ``reco2dur`` and ``utt2dur`` are compared with what is
    read. Commands in ``wav.scp`` (``... |``) run only if the options trust commands. Paths start at the directory, or
    at the root of the options.

    Args:
        source: The directory.
        out: Dialogues folder.
        role: Who speaks: "user" for recognition (mode ASR), "assistant" for synthesis (mode TTS).
        options: Rules; the plain ones when None.
    """

    _last: tuple[str, bytes] | None = None  # command, and what it printed

    def check_source(self) -> None:
        """Refuse a directory without the two tables that are needed."""
        super().check_source()
        for name in ("wav.scp", "text"):
            if not (self.source / name).is_file():
                there = sorted(path.name for path in self.source.iterdir()) if self.source.is_dir() else []
                raise FileNotFoundError(
                    f"{self.source / name} does not exist; a Kaldi directory has wav.scp and text, this one has "
                    f"{', '.join(there) or 'nothing'}"
                )

    def files(self) -> list[Path]:
        """The tables."""
        return [self.source / name for name in TABLES if (self.source / name).is_file()]

    def count(self) -> int | None:
        """Utterances."""
        with (self.source / "text").open("rb") as lines:
            return sum(1 for _ in lines)

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue an utterance, in the order of ``text``."""
        tables: dict[str, dict[str, tuple[str, str]]] = {}
        for name in TABLES:
            tables[name] = {}
            for found in _table(self.source / name):
                if isinstance(found, BadData):
                    yield found
                else:
                    key, value, where = found
                    if key in tables[name]:
                        rule = f"a key that {tables[name][key][1]} does not have"
                        yield BadData("FAC-D06", "id that is there already", where, key, rule, "Remove one of the two.")
                    tables[name].setdefault(key, (value, where))
        for name, (text, where) in tables["text"].items():
            yield Pending(name, where, partial(self._dialogue, name, text, where, tables))
        cut = tables["segments"] or tables["wav.scp"]
        for name in cut.keys() - tables["text"].keys():
            yield bad_field(cut[name][1], name, "an utterance that text has too", "Add its text, or remove it")

    def _dialogue(
        self, name: str, text: str, where: str, tables: Mapping[str, Mapping[str, tuple[str, str]]]
    ) -> Dialogue:
        start, seconds, recording = 0.0, None, name
        if tables["segments"]:
            if name not in tables["segments"]:
                raise bad_field(where, name, f"an utterance that {self.source / 'segments'} has too")
            recording, start, seconds = self._segment(*tables["segments"][name])
        if recording not in tables["wav.scp"]:
            raise bad_field(where, recording, f"a recording that {self.source / 'wav.scp'} has too")
        path, place = tables["wav.scp"][recording]
        source = self._printed(path, place) if is_command(path) else self.paths.file(path, place)
        sound = read_sound(source, place, self.options, start, seconds)
        have = len(sound.samples) / sound.sample_rate
        for table, key, compared in (("utt2dur", name, True), ("reco2dur", recording, not tables["segments"])):
            told = tables[table].get(key) if compared else None
            if told is not None and not abs(_number(*told) - have) <= TOLERANCE:
                rule = f"the {have:.3f} s that there are, within {TOLERANCE} s"
                raise BadData("FAC-A09", "duration other than told", told[1], told[0], rule, f"Make {table} again.")
        speaker = tables["utt2spk"].get(name, ("", ""))[0]
        known = {
            "speaker": speaker,
            "gender": tables["spk2gender"].get(speaker, ("", ""))[0],
            "lang": tables["utt2lang"].get(name, ("", ""))[0],
        }
        return self.dialogue(name, where, text, sound, {key: value for key, value in known.items() if value})

    def _printed(self, command: str, where: str) -> bytes:
        """What a command prints; that of the last one is kept, for its utterances mostly follow one another."""
        if self._last is None or self._last[0] != command:
            self._last = command, self.paths.run(command, where)
        return self._last[1]

    @staticmethod
    def _segment(line: str, where: str) -> tuple[str, float, float | None]:
        """Recording, start and length of a line of ``segments``; an end of -1 is that of the recording."""
        parts = line.split()
        if len(parts) != 3:
            raise bad_field(where, line, "utterance, recording, start and end")
        start, end = _number(parts[1], where), _number(parts[2], where)
        if start < 0 or (end <= start and end != -1):
            raise BadData(
                "FAC-D08", "piece outside its recording", where, line, "an end behind the start", "Correct it."
            )
        return parts[0], start, None if end == -1 else end - start


def _table(file: Path) -> Iterator[tuple[str, str, str] | BadData]:
    """Key, value and place of every line; a table that is not there has none."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            try:
                key, *rest = line.decode("utf-8").strip().split(maxsplit=1)
            except UnicodeDecodeError as error:
                told = f"byte 0x{line[error.start]:02x} as byte {error.start + 1} of the line"
                yield BadData("FAC-D05", "text that is not UTF-8", where, told, "UTF-8", "Convert the file.")
            except ValueError:
                yield BadData("FAC-D04", "blank line", where, "", "a key and a value", "Remove the line.")
            else:
                yield key, rest[0] if rest else "", where


def _number(written: str, where: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise bad_field(where, written, "seconds") from None
