"""Log-probabilities of labels over a large vocabulary, without ever keeping rows x vocabulary.

Plain cross entropy keeps the logits, their float32 copy and their gradient: 10 bytes x rows x vocabulary. Here rows are
taken a chunk at a time, forward and backward, and the backward pass computes a chunk's logits again. Callers weight
tokens as they like, which is why the gradient is not formed in the forward pass. Where all logits together are small
enough they are kept instead, once and in float32, which saves a third of the work of the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["chunked_logprobs"]

#: Logits (rows x vocabulary) up to which the plain path is taken: 4 MiB in float32, less than caches hold.
PLAIN_ELEMENTS = 2**20
#: Logits up to which they are kept for the backward pass, in chunks of their own: 512 and 128 MiB in float32.
KEPT_ELEMENTS, KEPT_CHUNK = 2**27, 2**25
#: Logits of one chunk when the caller names no chunk and they are not kept: 256 MiB in float32.
CHUNK_ELEMENTS = 2**26


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_rows: int | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target under ``softmax(hidden @ weight.T + bias)``, and whether it is the top one.

    Args:
        hidden: ``(M, D)``; zero rows are fine.
        weight: Output matrix ``(V, D)``.
        targets: ``(M,)`` int64 in ``[0, V)``.
        chunk_rows: Rows computed at a time, and again in the backward pass; None takes the plain path for small
            products, keeps the logits of larger ones up to 512 MiB, and computes chunks of 256 MiB twice beyond that.
        bias: ``(V,)``.
        softcap: Logits ``x`` become ``softcap * tanh(x / softcap)``; as they are when None.

    Returns:
        Log-probabilities ``(M,)`` in float32 (float64 for float64 inputs) and ``correct`` ``(M,)`` bool.

    Raises:
        ValueError: ``targets`` has another number of rows than ``hidden``.
    """
    rows, vocab = hidden.shape[0], weight.shape[0]
    if targets.shape != (rows,):
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} for {rows} hidden rows; select the labelled rows first"
        )
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
    if rows == 0 or (chunk_rows is None and rows * vocab <= PLAIN_ELEMENTS):
        logits = _logits(hidden, weight.to(hidden.dtype), _cast(bias, hidden.dtype), softcap)
        picked = logits.gather(1, targets[:, None]).squeeze(1)
        return picked - logits.logsumexp(1), logits.detach().argmax(1) == targets
    keep = chunk_rows is None and rows * vocab <= KEPT_ELEMENTS and torch.is_grad_enabled()
    if chunk_rows is None:
        chunk_rows = max(64, (KEPT_CHUNK if keep else CHUNK_ELEMENTS) // vocab)
    return _ChunkedLogprobs.apply(hidden, weight, bias, targets, chunk_rows, softcap, keep)  # type: ignore[no-any-return]


class _ChunkedLogprobs(torch.autograd.Function):
    """Chunks of rows; saves the inputs and one number a row, and the logits when told to."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_rows: int,
        softcap: float | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        matrix, offset = weight.to(ctx.dtype), _cast(bias, ctx.dtype)
        logprobs, normaliser, correct = [], [], []
        kept: list[Tensor] = []
        for chunk, labels in zip(hidden.split(chunk_rows), targets.split(chunk_rows), strict=True):
            logits = _logits(chunk, matrix, offset, softcap)
            norm = logits.logsumexp(1)
            logprobs.append(logits.gather(1, labels[:, None]).squeeze(1) - norm)
            normaliser.append(norm)
            correct.append(logits.argmax(1) == labels)
            if keep:
                kept.append(logits)
            del logits  # before the next chunk's logits exist
        hits = torch.cat(correct)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normaliser), *kept)
        ctx.chunk_rows, ctx.softcap = chunk_rows, softcap
        ctx.mark_non_differentiable(hits)
        return torch.cat(logprobs), hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser, *kept = ctx.saved_tensors
        matrix, offset = weight.to(ctx.dtype), _cast(bias, ctx.dtype)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros(weight.shape[0], dtype=grad.dtype, device=weight.device) if wants_bias else None
        for index, start in enumerate(range(0, hidden.shape[0], ctx.chunk_rows)):
            part = slice(start, start + ctx.chunk_rows)
            chunk, scale = hidden[part].to(ctx.dtype), grad[part, None]
            logits = kept[index] if kept else _logits(chunk, matrix, offset, ctx.softcap)
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square()  # of tanh, by its value
            # gradient of log p[target] by the logits: onehot(target) - softmax. Kept logits stay as they are: the graph
            # may be gone through again; recomputed ones are overwritten
            delta = logits - normaliser[part, None] if kept else logits.sub_(normaliser[part, None])
            delta.exp_().mul_(-scale)
            delta.scatter_add_(1, targets[part, None], scale)
            if slope is not None:
                delta.mul_(slope)
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (delta @ matrix).to(hidden.dtype)
            if wants_weight:
                # chunks are summed in float32 also when the matrix is kept in half precision
                if grad_weight is None:
                    grad_weight = (delta.t() @ chunk).to(grad.dtype)
                elif ctx.dtype == grad_weight.dtype:
                    grad_weight.addmm_(delta.t(), chunk)
                else:
                    grad_weight += delta.t() @ chunk
            del logits, delta, slope
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _logits(chunk: Tensor, matrix: Tensor, offset: Tensor | None, softcap: float | None) -> Tensor:
    """Logits ``(rows, V)`` of a chunk, wide enough for a softmax over a large vocabulary; a tensor of its own."""
    logits = _wide(torch.nn.functional.linear(chunk.to(matrix.dtype), matrix, offset))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)
