"""Word error rate as a metric over batches and processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from fac_lightning.wer import count_word_errors

__all__ = ["NormalizedWER"]


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
        self.errors += counts.errors
        self.words += counts.words

    def compute(self) -> Tensor:
        """Errors per reference word, shape ``()``; not a number before any word was seen."""
        return self.errors / self.words
