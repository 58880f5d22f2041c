"""Text on its way into rows: a chat format that remembers, and the job that trains a small text tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from fac_lightning.data.dialogue import read_dialogues
from fac_lightning.prompts import ASR_INSTRUCTION, MODES, SYSTEM_PROMPTS, TTS_INSTRUCTION, ChatFormat
from fac_lightning.text_tokenizer import train_text_tokenizer

__all__ = ["CachedChatFormat", "TextTokenizerTraining"]

MAX_CACHED_TEXTS = 200_000


class CachedChatFormat(ChatFormat):
    """A ``ChatFormat`` that encodes each text once; rows of later epochs cost no tokenisation."""

    max_texts: ClassVar[int] = MAX_CACHED_TEXTS

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; do not change the list."""
        cache: dict[str, list[int]] = self.__dict__.setdefault("_cache", {})
        ids = cache.get(text)
        if ids is None:
            if len(cache) >= self.max_texts:
                cache.clear()
            ids = cache[text] = super().encode(text)
        return ids

    def user_open(self) -> list[int]:
        """What precedes the user's content; do not change the list."""
        return self._marks[0]

    def assistant_open(self) -> list[int]:
        """What precedes the assistant's content; do not change the list."""
        return self._marks[1]

    def close(self) -> list[int]:
        """What follows a turn's content; do not change the list."""
        return self._marks[2]

    @cached_property
    def _marks(self) -> tuple[list[int], list[int], list[int]]:
        """What every turn asks for, by no look-up of a text."""
        return super().user_open(), super().assistant_open(), super().close()


class TextTokenizerTraining:
    """Job: train a byte-level BPE tokenizer on the texts of dialogues and on the fixed prompts.

    Args:
        dialogues: Dialogue folders or manifests; their audio is not read.
        vocab_size: Size aimed at; a small corpus gives fewer.
        out: Folder of the tokenizer.
        modes: Modes whose system prompts it learns from; those without a chain of modality when None.
    """

    def __init__(self, dialogues: list[str], vocab_size: int, out: str, modes: list[str] | None = None) -> None:
        if not dialogues:
            raise ValueError("dialogues is empty; name at least one dialogues folder")
        if unknown := sorted(set(modes or ()) - MODES.keys()):
            raise ValueError(f"unknown modes {', '.join(unknown)}; choose from {', '.join(MODES)}")
        self.modes = [mode for mode in MODES if not MODES[mode].chains] if modes is None else list(modes)
        self.dialogues, self.vocab_size, self.out = dialogues, vocab_size, Path(out)

    def run(self) -> Path:
        """Train, save and return the folder."""
        train_text_tokenizer(self._texts(), self.vocab_size, self.out)
        return self.out

    def _texts(self) -> Iterator[str]:
        yield from ("system\n", "user\n", "assistant\n", ASR_INSTRUCTION, TTS_INSTRUCTION)
        yield from (SYSTEM_PROMPTS[mode] for mode in self.modes)
        for path in self.dialogues:
            for dialogue in read_dialogues(path, audio=False):
                yield from (turn.text for turn in dialogue.turns)
                if dialogue.system is not None:
                    yield dialogue.system
