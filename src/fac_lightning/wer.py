"""Word error rate of texts as they are said, not as they are spelt: "seven plus five" equals "7 + 5"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["WordErrors", "count_word_errors", "normalize_english", "word_error_rate"]


@dataclass(frozen=True)
class WordErrors:
    """Counts of one comparison of many texts."""

    substitutions: int
    deletions: int
    insertions: int
    words: int  # in the references

    @property
    def errors(self) -> int:
        """All errors together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word, 0 is perfect and more than 1 is possible; not a number if there is no word."""
        return self.errors / self.words if self.words else float("nan")


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors per reference word over all texts together, after ``normalize_english``; see ``WordErrors.rate``."""
    return count_word_errors(references, hypotheses).rate


def count_word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Word errors of ``hypotheses`` against ``references``, text by text, after ``normalize_english``.

    Raises:
        ValueError: If there are not as many hypotheses as references.
        ImportError: If the extra ``eval`` is not installed.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one text for each")
    if not references:
        return WordErrors(0, 0, 0, 0)
    try:
        import jiwer
    except ImportError as error:
        raise _missing() from error
    counts = jiwer.process_words(
        [normalize_english(text) for text in references], [normalize_english(text) for text in hypotheses]
    )
    return WordErrors(
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        words=counts.hits + counts.substitutions + counts.deletions,
    )


def normalize_english(text: str) -> str:
    """Lower case, digits for numbers, no punctuation, one spelling: Whisper's rules for English.

    Source: appendix C of https://arxiv.org/abs/2212.04356
    """
    normalized: str = _normalizer()(text)
    return normalized


@lru_cache(maxsize=1)
def _normalizer() -> Any:
    """Whisper's normaliser; it builds tables, so it is made once."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise _missing() from error
    return EnglishTextNormalizer()


def _missing() -> ImportError:
    """The one line for a missing extra."""
    return ImportError("word error rates need jiwer and whisper-normalizer: pip install 'fac-lightning[eval]'")
