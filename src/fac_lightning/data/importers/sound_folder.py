"""A plain folder of recordings and text files becomes a dialogues folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fac_lightning.data.dialogue import Dialogue, Role, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import Pending
from fac_lightning.data.importers.sound import read_sound, spoken_turn
from fac_lightning.data.importers.speech_and_text import SpeechAndText
from fac_lightning.data.importers.told import bad_field, missing_file

__all__ = ["SOUND_ENDINGS", "SoundFolderImport"]

SOUND_ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus")
TURN = re.compile(r"(?P<name>.+)-(?P<number>\d+)-(?P<role>user|assistant)")


class SoundFolderImport(SpeechAndText):
    """Job: a folder of recordings with text files of the same names becomes a dialogues folder.

    ``x.wav`` and ``x.txt`` are a recording and what is said in it. ``x-0-user.wav`` with ``x-0-user.txt``,
    ``x-1-assistant.wav`` with ``x-1-assistant.txt`` and so on are the turns of a dialogue ``x``; a turn may be a text
    alone, and the user's may be a recording alone. ``x-system.txt`` is its system prompt. Folders inside are searched
    too, and are part of the name.

    Args:
        source: The folder.
        out: Dialogues folder.
        role: Who speaks in recordings that are no turns: "user" for recognition (mode ASR), "assistant" for synthesis
            (mode TTS).
        options: Rules; the plain ones when None.
    """

    def check_source(self) -> None:
        """Refuse what is no folder."""
        super().check_source()
        if not self.source.is_dir():
            raise ValueError(f"{self.source} is no folder; name one with recordings and text files")

    def files(self) -> list[Path]:
        """Recordings and texts."""
        found = (path for path in self.source.rglob("*") if path.suffix.lower() in (*SOUND_ENDINGS, ".txt"))
        out = self.out.resolve()
        return sorted(path for path in found if path.is_file() and not path.resolve().is_relative_to(out))

    def pending(self) -> Iterator[Pending | BadData]:
        """Dialogues by name."""
        stems: dict[str, dict[str, Path]] = {}
        for file in self.files():
            stem = file.relative_to(self.source).with_suffix("").as_posix()
            kind = "text" if file.suffix.lower() == ".txt" else "sound"
            if kind in stems.setdefault(stem, {}):
                rule = f"one recording of the name, and {stems[stem][kind].name} is there"
                yield bad_field(str(file), file.name, rule, "Remove one of the two")
            else:
                stems[stem][kind] = file
        dialogues: dict[str, list[tuple[int, Role, dict[str, Path]]]] = {}
        systems = {stem.removesuffix("-system"): files for stem, files in stems.items() if stem.endswith("-system")}
        for stem, files in stems.items():
            if match := TURN.fullmatch(stem):
                turn = (int(match["number"]), match["role"], files)
                dialogues.setdefault(match["name"], []).append(turn)  # type: ignore[arg-type]
        for stem, files in stems.items():
            if TURN.fullmatch(stem) or stem.removesuffix("-system") in dialogues:
                continue
            if "sound" not in files:
                yield missing_file(files["text"].with_suffix(".wav"), str(files["text"]))
            elif "text" not in files:
                yield missing_file(files["sound"].with_suffix(".txt"), str(files["sound"]), "FAC-D01")
            else:
                yield Pending(stem, str(files["sound"]), partial(self._recording, stem, files))
        for name, turns in dialogues.items():
            where = str(self.source / name)
            turns.sort(key=lambda turn: turn[0])
            numbers = [number for number, _, _ in turns]
            if numbers != list(range(numbers[0], numbers[0] + len(turns))) or numbers[0] > 1:
                yield bad_field(where, numbers, "turns that are numbered one after the other, from 0 or 1")
            else:
                yield Pending(name, where, partial(self._dialogue, name, turns, systems.get(name, {})))

    def _recording(self, name: str, files: dict[str, Path]) -> Dialogue:
        sound = read_sound(self.paths.file(str(files["sound"].absolute()), name), str(files["sound"]), self.options)
        return self.dialogue(name, str(files["text"]), _text(files["text"]), sound, {})

    def _dialogue(self, name: str, turns: list[tuple[int, Role, dict[str, Path]]], system: dict[str, Path]) -> Dialogue:
        made = []
        for _, role, files in turns:
            text = _text(files["text"]) if "text" in files else ""
            where = str(files.get("sound") or files.get("text"))
            if not text and (role == "assistant" or "sound" not in files):
                raise bad_field(where, text, f"what the {role} says, in a text file")
            if "sound" in files:
                sound = read_sound(self.paths.file(str(files["sound"].absolute()), where), where, self.options)
                made.append(spoken_turn(role, text, sound, self.options))
            else:
                made.append(Turn(role, text))
        return Dialogue(name, tuple(made), _text(system["text"]) if "text" in system else None)


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        told = f"byte 0x{data[error.start]:02x} as byte {error.start + 1}"
        raise BadData("FAC-D05", "text that is not UTF-8", str(file), told, "UTF-8", "Convert the file.") from error
