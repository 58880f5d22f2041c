"""Recordings with their texts, as recognition and synthesis are trained on: one turn makes the dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fac_lightning.data.dialogue import Dialogue, Role, Turn
from fac_lightning.data.importers.base import DialogueImport
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sound import Sound, spoken_turn
from fac_lightning.data.importers.told import bad_field

__all__ = ["SpeechAndText"]


class SpeechAndText(DialogueImport):
    """Base of imports whose items are a recording and what is said in it.

    Args:
        source: File or folder.
        out: Dialogues folder.
        role: Who speaks: "user" for recognition (mode ASR), "assistant" for synthesis (mode TTS).
        options: Rules; the plain ones when None.
    """

    def __init__(self, source: str, out: str, role: str = "user", options: ImportOptions | None = None) -> None:
        super().__init__(source, out, options)
        if role not in ("user", "assistant"):
            raise ValueError(f"role must be 'user' or 'assistant', got {role!r}")
        self.role: Role = role  # type: ignore[assignment]

    def dialogue(
        self, name: str, where: str, text: object, sound: Sound, custom: Mapping[str, Any], answer: object = None
    ) -> Dialogue:
        """The recording as a turn, and behind it what the assistant answers in text, if there is such a thing.

        Raises:
            BadData: A text is missing.
        """
        if not isinstance(text, str) or not text.strip():
            raise bad_field(f"{where}, text", text, "what is said")
        turns = [spoken_turn(self.role, text.strip(), sound, self.options)]
        if answer is not None:
            if not isinstance(answer, str) or not answer.strip():
                raise bad_field(f"{where}, answer", answer, "a text")
            turns.append(Turn("assistant", answer.strip()))
        return Dialogue(name, tuple(turns), None, dict(custom))
