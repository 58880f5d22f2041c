"""Causal attention over packed rows, shared by backbones and heads: no padding line, no mask of size N x N.

Rows of similar length are gathered into one right-padded batch each, where causality alone keeps padding out of sight;
a row that is long or alone is sliced instead of gathered. On CUDA in half precision the variable-length kernel of
PyTorch takes the packed line as it is.

A row may continue another one, its parent: two answers to one prompt are three rows, and the prompt is computed once.
Keys and values of the parent are then gathered in front of the row's own, which is all that sharing costs.

Legend: N positions of the line, R rows, H query heads, K key-value heads (H a multiple of K), E width of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Bucket",
    "PackedLayout",
    "capped_attention",
    "keep_attention_uncompiled",
    "packed_attention",
    "packed_layout",
]

#: Rows at least this long are attended one by one: their attention costs far more than one more kernel call.
LONG_ROW = 384
#: A row joins a bucket when it is at least this fraction of the bucket's longest row.
MIN_FILL = 0.7


@dataclass(frozen=True)
class Bucket:
    """Rows that are attended together."""

    rows: int  # Rb
    length: int  # positions of the longest row, parents' included
    start: int  # first position in the line when the bucket is one row
    gather: Tensor | None  # (Rb * length,) int64 into N; None when the bucket is one row without a parent
    valid: Tensor | None  # (sum of lengths,) int64 into Rb * length: the rows' own positions


@dataclass(frozen=True)
class PackedLayout:
    """Where the rows of a packed line lie; computed once per forward and used by every layer."""

    total: int  # N
    max_length: int
    buckets: tuple[Bucket, ...]
    restore: Tensor | None  # (N,) int64: line position -> place in the concatenated bucket outputs
    offsets: Tensor  # (R + 1,) int32 cumulative lengths, parents' included
    spread: Tensor | None = None  # (offsets[-1],) int64 into N: rows with their parents in front; None without parents
    own: Tensor | None = None  # (N,) int64 into ``spread``: the rows' own positions


def packed_layout(lengths: Tensor, device: torch.device | str, parents: Tensor | None = None) -> PackedLayout:
    """Sort rows into buckets. Empty rows are skipped.

    Args:
        lengths: Positions per row ``(R,)``.
        device: Where index tensors land.
        parents: ``(R,)`` int64, the row that each row continues, -1 for none.

    Raises:
        ValueError: A parent is no earlier row, or has a parent itself.
    """
    sizes = lengths.cpu()
    starts = sizes.cumsum(0) - sizes
    above = torch.full_like(sizes, -1) if parents is None else parents.cpu()
    if bool((above >= torch.arange(len(above))).any()) or bool((above[above.clamp_min(0)] >= 0)[above >= 0].any()):
        raise ValueError(f"parents {above.tolist()}: a parent must be an earlier row that has no parent itself")
    led = above.clamp_min(0)
    kept = (sizes > 0).nonzero().squeeze(1)
    lead = sizes[led].where(above >= 0, 0)[kept]  # positions of each row's parent, in front of its own
    lead_start, start, whole = starts[led][kept], starts[kept], sizes[kept] + lead
    sized = whole.tolist()
    order = sorted(range(len(sized)), key=lambda i: -sized[i])
    buckets, taken = [], []
    first = 0
    while first < len(order):
        longest, last = sized[order[first]], first + 1
        while longest < LONG_ROW and last < len(order) and sized[order[last]] >= MIN_FILL * longest:
            last += 1
        rows, steps = torch.tensor(order[first:last]), torch.arange(longest)
        ahead, end = lead[rows, None], whole[rows, None]
        # positions past a row's end repeat its last one: causality hides them and their outputs are dropped
        own = start[rows, None] + torch.minimum(steps, end - 1) - ahead
        positions = torch.where(steps < ahead, lead_start[rows, None] + steps, own)  # (Rb, longest)
        real = ((steps >= ahead) & (steps < end)).flatten()
        taken.append(positions.flatten()[real])
        single = last - first == 1 and not ahead.any()
        buckets.append(
            Bucket(
                rows=last - first,
                length=longest,
                start=int(start[rows[0]]),
                gather=None if single else positions.flatten().to(device),
                valid=None if single or bool(real.all()) else real.nonzero().squeeze(1).to(device),
            )
        )
        first = last
    in_order = torch.cat(taken) if taken else torch.zeros(0, dtype=torch.long)
    restore = torch.empty_like(in_order)
    restore[in_order] = torch.arange(len(in_order))
    sorted_already = bool((in_order[1:] > in_order[:-1]).all())
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), whole.cumsum(0)])
    steps = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(whole)
    ahead = lead.repeat_interleave(whole)
    spread = torch.where(
        steps < ahead, lead_start.repeat_interleave(whole) + steps, start.repeat_interleave(whole) + steps - ahead
    )
    shared = bool(lead.any())
    return PackedLayout(
        total=int(sizes.sum()),
        max_length=max(sized, default=0),
        buckets=tuple(buckets),
        restore=None if sorted_already else restore.to(device),
        offsets=offsets.to(device, torch.int32),
        spread=spread.to(device) if shared else None,
        own=(steps >= ahead).nonzero().squeeze(1).to(device) if shared else None,
    )


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend causally inside every row of a packed line.

    Args:
        query: ``(N, H, E)``.
        key: ``(N, K, E)``.
        value: ``(N, K, E)``.
        layout: Of the same line.
        scale: Factor of the scores; ``E ** -0.5`` when None.
        dropout: Probability that a weight is dropped.
        window: Positions that a query sees, itself included; all earlier ones when None.
        softcap: Scores stay below this number; see ``capped_attention``, whose memory is quadratic in a row's length.

    Returns:
        ``(N, H, E)``.

    Raises:
        ValueError: The line is not as long as the layout says.
    """
    if query.shape[0] != layout.total:
        raise ValueError(
            f"the line has {query.shape[0]} positions but its row lengths sum to {layout.total}; "
            "pass the lengths of the rows that were packed"
        )
    return _attend(query, key, value, layout, scale, dropout, window, softcap)


def _attend_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PackedLayout,
    scale: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    if layout.total == 0:
        return query + key.sum() + value.sum()  # keeps the graph, so that every parameter gets a zero gradient
    device = query.device.type
    if torch.is_autocast_enabled(device):  # norms with float32 weights leave queries and keys wider than values
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    half = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    if half and dropout == 0 and softcap is None and _varlen() is not None:
        if layout.spread is None or layout.own is None:
            return _varlen_attention(query, key, value, layout, scale, window)
        query, key, value = (x.index_select(0, layout.spread) for x in (query, key, value))
        return _varlen_attention(query, key, value, layout, scale, window).index_select(0, layout.own)
    outputs = [_attend_bucket(query, key, value, b, scale, dropout, window, softcap) for b in layout.buckets]
    joined: Tensor = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return joined if layout.restore is None else joined.index_select(0, layout.restore)


_attend: Callable[..., Tensor] = _attend_rows


def keep_attention_uncompiled() -> None:
    """Let code that ``torch.compile`` makes from now on call packed attention as it is.

    Rows differ from line to line, and a program for one layout would be of no use for the next. Nothing else changes;
    doing it again changes nothing.
    """
    global _attend
    if _attend is _attend_rows:
        _attend = torch.compiler.disable(_attend_rows)


def _attend_bucket(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bucket: Bucket,
    scale: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    def take(x: Tensor) -> Tensor:  # (N, heads, E) -> (Rb, heads, length, E)
        if bucket.gather is None:
            return x[bucket.start : bucket.start + bucket.length].transpose(0, 1).unsqueeze(0)
        return x.index_select(0, bucket.gather).view(bucket.rows, bucket.length, *x.shape[1:]).transpose(1, 2)

    band = None
    if softcap is not None or (window is not None and window < bucket.length):
        steps = torch.arange(bucket.length, device=query.device)
        distance = steps[:, None] - steps
        band = (distance >= 0) & (distance < (window or bucket.length))
    out: Tensor
    if softcap is not None:
        out = capped_attention(take(query), take(key), take(value), band, softcap, scale, dropout)
    else:
        out = F.scaled_dot_product_attention(
            take(query),
            take(key),
            take(value),
            attn_mask=band,
            dropout_p=dropout,
            is_causal=band is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    flat: Tensor = out.transpose(1, 2).flatten(0, 1)  # (Rb * length, H, E)
    return flat if bucket.valid is None else flat.index_select(0, bucket.valid)


def capped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    softcap: float,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention ``(B, H, L, E)`` whose scores are ``softcap * tanh(score / softcap)`` (Gemma 2, arXiv 2408.00118).

    No fused kernel of PyTorch does this, so all scores ``(B, H, L, S)`` are held.

    Args:
        query: ``(B, H, L, E)``.
        key: ``(B, K, S, E)``, H a multiple of K.
        value: ``(B, K, S, E)``.
        mask: Bool, True = seen, broadcastable to ``(B, H, L, S)``; everything is seen when None.
        softcap: What no score exceeds.
        scale: Factor of the scores; ``E ** -0.5`` when None.
        dropout: Probability that a weight is dropped.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # not -inf: a padded query sees nothing
    weights = F.dropout(scores.float().softmax(-1).to(query.dtype), dropout)
    return weights @ value


@lru_cache(maxsize=1)
def _varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """PyTorch's variable-length attention and the options that the installed version knows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    names = frozenset(inspect.signature(varlen_attn).parameters)
    return (varlen_attn, names) if "window_size" in names else None


def _varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None, window: int | None
) -> Tensor:
    found = _varlen()
    assert found is not None
    varlen_attn, names = found
    options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    if "scale" in names:
        options["scale"] = scale
    elif scale is not None:
        query = query * (scale * query.shape[-1] ** 0.5)
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in names:
            options["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    bounds, longest = layout.offsets, layout.max_length
    out: Tensor = varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)
    return out
