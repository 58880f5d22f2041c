"""A text tokenizer without a vocabulary file: every word is one token, so a prompt of n words has n tokens."""

from __future__ import annotations

import re
import zlib

from fac_lightning.prompts import SPECIAL_TOKENS

__all__ = ["WordTokenizer"]

_PIECE = re.compile(r"<\|[A-Za-z_]+\|>|\n|[^\s<]+|<")


class WordTokenizer:
    """Words to ids by a checksum; special tokens come first. Fits ``ChatFormat`` and any vocabulary.

    Args:
        vocab_size: Ids are below it.
    """

    def __init__(self, vocab_size: int) -> None:
        self.special = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
        if vocab_size <= len(self.special):
            raise ValueError(f"vocab_size must be above {len(self.special)}, the special tokens, got {vocab_size}")
        self.vocab_size = vocab_size

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Id of one token."""
        first = len(self.special)
        known = self.special.get(tokens)
        return first + zlib.crc32(tokens.encode()) % (self.vocab_size - first) if known is None else known

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Ids of the words, line ends and special tokens of a text."""
        return [self.convert_tokens_to_ids(piece) for piece in _PIECE.findall(text)]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids as numbered words: the words themselves are not remembered."""
        names = {index: token for token, index in self.special.items()}
        kept = [i for i in token_ids if not (skip_special_tokens and i in names)]
        return " ".join(names.get(i, f"w{i}") for i in kept)
