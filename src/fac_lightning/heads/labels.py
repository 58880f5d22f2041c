"""Between labels, output rows and the code ids that callers see.

Heads put out ``codebook_size + 1`` rows: the real codes, then ``eos``. ``bos`` and ``pad`` can never be said, so that
sampling and teacher forcing share one distribution.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.losses import chunked_logprobs
from fac_lightning.types import IGNORE, HeadOutput, bos_code, eos_code, pad_code

__all__ = [
    "ask",
    "check_groups",
    "check_labels",
    "end_after_eos",
    "group_output",
    "said_before",
    "shown",
    "spread_logits",
]


def check_groups(hidden: Tensor, labels: Tensor, reply_lengths: Tensor, codebook_size: int) -> None:
    """Refuse groups that do not agree, and labels ``(H, k, Q)`` that a head cannot say.

    Raises:
        ValueError: ``hidden`` ``(H, dim)``, ``labels`` and ``reply_lengths`` count different groups; or a label.
    """
    if int(reply_lengths.sum()) != hidden.shape[0] or labels.shape[0] != hidden.shape[0]:
        raise ValueError(
            f"{hidden.shape[0]} hidden states, {labels.shape[0]} groups of labels and reply_lengths that sum to "
            f"{int(reply_lengths.sum())} do not agree; pass one label group and one hidden state per group said"
        )
    check_labels(labels, codebook_size)


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


def group_output(
    states: Tensor, weight: Tensor, labels: Tensor, codebook_size: int, bias: Tensor | None = None
) -> HeadOutput:
    """Output of a head whose last layer has a matrix for each of P places: one codebook, or one place of a group.

    Args:
        states: ``(M, P, W)``, where ``M * P = H * k * Q``.
        weight: ``(P * (codebook_size + 1), W)``.
        labels: ``(H, k, Q)`` codes, ``eos`` or IGNORE, checked.
        codebook_size: Real codes.
        bias: ``(P * (codebook_size + 1),)``.
    """
    targets, count = labels.reshape(states.shape[:2]), states.shape[1]
    matrices = weight.unflatten(0, (count, -1))
    biases = [None] * count if bias is None else bias.unflatten(0, (count, -1))
    found = [
        _labelled_logprobs(states[:, place], matrices[place], targets[:, place], codebook_size, biases[place])
        for place in range(count)
    ]
    return HeadOutput(
        logprobs=torch.stack([logprobs for logprobs, _ in found], 1).view(labels.shape),
        correct=torch.stack([correct for _, correct in found], 1).view(labels.shape),
        mask=labels != IGNORE,
    )


def _labelled_logprobs(
    states: Tensor, matrix: Tensor, labels: Tensor, codebook_size: int, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities ``(M,)`` of the labelled rows, zero elsewhere, and whether each is the most likely code."""
    rows = (labels != IGNORE).nonzero().squeeze(1)
    targets = labels[rows].clamp_max(codebook_size)  # eos is the last output row
    logprobs, correct = chunked_logprobs(states.index_select(0, rows), matrix, targets, bias=bias)
    size = labels.shape[0]
    return (
        logprobs.new_zeros(size).index_copy(0, rows, logprobs),
        correct.new_zeros(size).index_copy(0, rows, correct),
    )


def spread_logits(logits: Tensor) -> Tensor:
    """Logits ``(..., codebook_size + 3)`` by code id of output rows ``(..., codebook_size + 1)``; bos and pad: -inf."""
    never = torch.full_like(logits[..., :1], -torch.inf)
    return torch.cat([logits[..., :-1], never, logits[..., -1:], never], -1)


def ask(states: Tensor, matrix: Tensor, sample: Callable[[Tensor], Tensor]) -> Tensor:
    """Codes ``(B,)`` that ``sample`` picks from states ``(B, W)`` by an output matrix ``(codebook_size + 1, W)``."""
    return sample(spread_logits(F.linear(states, matrix.to(states.dtype)).float()))


def shown(labels: Tensor, codebook_size: int) -> Tensor:
    """Labels as the codes that a head is shown: ``pad`` where there is none."""
    return labels.where(labels != IGNORE, pad_code(codebook_size))


def said_before(codes: Tensor, starts: Tensor, codebook_size: int) -> Tensor:
    """What was said one place earlier in a line ``(N, ...)``: ``bos`` at the ``starts`` ``(R,)`` of its rows."""
    return codes.roll(1, 0).index_fill(0, starts, bos_code(codebook_size))


def end_after_eos(codes: Tensor, codebook_size: int) -> Tensor:
    """Codes ``(B, S)`` with everything behind a row's first ``eos`` turned into ``pad``."""
    is_end = (codes == eos_code(codebook_size)).long()
    return codes.masked_fill((is_end.cumsum(1) - is_end) > 0, pad_code(codebook_size))
