"""Texts of turns as token ids: made for the tars, so that training tokenises nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fac_lightning.text_tokenizer import load_text_tokenizer, text_fingerprint

__all__ = ["TextMaker", "TextsOf"]

SMALL = 2**16  # vocabulary below which ids take two bytes


@dataclass(frozen=True)
class TextsOf:
    """The text tokenizer that made the token ids of a folder."""

    tokenizer: str  # as it was named, for messages
    fingerprint: str


class TextMaker:
    """Tokenise texts of turns; the tokenizer is loaded once in each process.

    Args:
        name: Of the text tokenizer: hub id or folder.

    Raises:
        ValueError: It has no fingerprint, by which training could know it again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenizer: Any = None
        fingerprint = text_fingerprint(self.tokenizer)
        if fingerprint is None:
            raise ValueError(
                f"the text tokenizer {name!r} is written in Python, and its ids cannot be told from those of another: "
                "take one with a tokenizer.json, or keep texts alone (no --text-tokenizer)"
            )
        self.of = TextsOf(name, fingerprint)
        self.dtype = "<u2" if max(self.tokenizer.get_vocab().values(), default=0) < SMALL else "<i4"

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads a tokenizer of its own."""
        return {**self.__dict__, "_tokenizer": None}

    @property
    def tokenizer(self) -> Any:
        """The text tokenizer, with our special tokens."""
        if self._tokenizer is None:
            self._tokenizer = load_text_tokenizer(self.name)
        return self._tokenizer

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids ``(T,)`` of texts, as layout would have them."""
        encode = self.tokenizer.encode
        return [np.array(encode(text, add_special_tokens=False), dtype=self.dtype) for text in texts]
