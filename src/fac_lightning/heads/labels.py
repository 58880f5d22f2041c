"""Between labels, output rows and the code ids that callers see.

Heads put out ``codebook_size + 1`` rows: the real codes, then ``eos``. ``bos`` and ``pad`` can never be said, so that
sampling and teacher forcing share one distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.losses import chunked_logprobs
from fac_lightning.types import IGNORE, bos_code, eos_code, pad_code

__all__ = ["end_after_eos", "labelled_logprobs", "spread_logits"]


def labelled_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, codebook_size: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labelled rows only, zero elsewhere.

    Args:
        hidden: ``(M, W)``.
        weight: ``(codebook_size + 1, W)``.
        labels: ``(M,)`` codes, ``eos`` or IGNORE.
        codebook_size: Real codes.
        bias: ``(codebook_size + 1,)``.

    Returns:
        Log-probabilities ``(M,)`` float32 and ``correct`` ``(M,)`` bool.

    Raises:
        ValueError: A label is ``bos``, ``pad`` or no code at all.
    """
    rows = (labels != IGNORE).nonzero().squeeze(1)
    targets = labels[rows]
    wrong = (targets < 0) | (targets == bos_code(codebook_size)) | (targets > eos_code(codebook_size))
    if bool(wrong.any()):
        raise ValueError(
            f"speech label {int(targets[wrong][0])} cannot be said: with codebook_size {codebook_size} labels are "
            f"0..{codebook_size - 1}, eos {eos_code(codebook_size)} or {IGNORE}; "
            "check that layout, tokenizer and head have the same codebook_size"
        )
    targets = targets.where(targets < codebook_size, codebook_size)  # eos is the last output row
    logprobs, correct = chunked_logprobs(hidden.index_select(0, rows), weight, targets, bias=bias)
    size = labels.shape[0]
    return (
        logprobs.new_zeros(size).index_copy(0, rows, logprobs),
        correct.new_zeros(size).index_copy(0, rows, correct),
    )


def spread_logits(logits: Tensor) -> Tensor:
    """Logits ``(..., codebook_size + 3)`` by code id of output rows ``(..., codebook_size + 1)``; bos and pad: -inf."""
    never = torch.full_like(logits[..., :1], -torch.inf)
    return torch.cat([logits[..., :-1], never, logits[..., -1:], never], -1)


def end_after_eos(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes ``(B, S)`` with everything behind a row's first ``eos`` turned into ``pad``."""
    is_end = (codes == eos_code(codebook_size)).long()
    return codes.masked_fill((is_end.cumsum(1) - is_end) > 0, pad_code(codebook_size))
