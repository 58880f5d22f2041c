"""Word error rate of texts as they are said, not as they are spelt: "seven plus five" equals "7 + 5"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["NormalizedWER", "WordErrors", "count_word_errors", "normalize_english", "word_error_rate"]


@dataclass(frozen=True)
class WordErrors:
    """Counts of one comparison of many texts."""

    substitutions: int
    deletions: int
    insertions: int
    words: int  # in the references

    @property
    def rate(self) -> float:
        """Errors per reference word, 0 is perfect and more than 1 is possible; not a number if there is no word."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.words if self.words else float("nan")


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


class NormalizedWER(Metric):
    """``word_error_rate`` gathered over batches and processes.

    >>> metric = NormalizedWER()  # doctest: +SKIP
    >>> metric.update(["7 plus 5 is 12."], ["Seven plus five is twelve"])  # doctest: +SKIP
    >>> metric.compute()  # doctest: +SKIP
    tensor(0.)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    errors: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("errors", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("words", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Sequence[str] | str, target: Sequence[str] | str) -> None:
        """Count the errors of what was said (``preds``) against what should have been (``target``)."""
        preds, target = ([text] if isinstance(text, str) else text for text in (preds, target))
        counts = count_word_errors(references=target, hypotheses=preds)
        self.errors += counts.substitutions + counts.deletions + counts.insertions
        self.words += counts.words

    def compute(self) -> Tensor:
        """Errors per reference word, shape ``()``; not a number before any word was seen."""
        return self.errors / self.words


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
