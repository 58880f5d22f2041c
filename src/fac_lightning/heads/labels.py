"""Between labels, output rows and the code ids that callers see.

Heads put out ``codebook_size + 1`` rows: the real codes, then ``eos``. ``bos`` and ``pad`` can never be said, so that
sampling and teacher forcing share one distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.losses import chunked_logprobs
from fac_lightning.types import IGNORE, bos_code, eos_code, pad_code

__all__ = ["check_labels", "end_after_eos", "labelled_logprobs", "spread_logits"]


def check_labels(labels: Tensor, codebook_size: int) -> None:
    """Refuse labels ``(...)`` that a head cannot say: ``bos``, ``pad`` and what is no code at all.

    Raises:
        ValueError: Names the first such label.
    """
    bos = bos_code(codebook_size)
    outside = (labels < 0) | (labels == bos) | (labels > eos_code(codebook_size))
    wrong = labels[outside & (labels != IGNORE)]
    if (wrong == bos).any():
        raise ValueError(
            f"speech label {bos} cannot be said: it is bos, a lead-in to be learned, and this head has no row for it; "
            "take the reply rule fac_lightning.replies.FrameEnd, or a head that says_special (FunAudioHead)"
        )
    if wrong.numel():
        raise ValueError(
            f"speech label {int(wrong[0])} cannot be said: with codebook_size {codebook_size} labels are "
            f"0..{codebook_size - 1}, eos {eos_code(codebook_size)} or {IGNORE}; "
            "check that layout, tokenizer and head have the same codebook_size"
        )


def labelled_logprobs(
    hidden: Tensor, weight: Tensor, labels: Tensor, codebook_size: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the labelled rows only, zero elsewhere.

    Args:
        hidden: ``(M, W)``.
        weight: ``(codebook_size + 1, W)``.
        labels: ``(M,)`` codes, ``eos`` or IGNORE, checked.
        codebook_size: Real codes.
        bias: ``(codebook_size + 1,)``.

    Returns:
        Log-probabilities ``(M,)`` float32 and ``correct`` ``(M,)`` bool.
    """
    rows = (labels != IGNORE).nonzero().squeeze(1)
    targets = labels[rows].clamp_max(codebook_size)  # eos is the last output row
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
