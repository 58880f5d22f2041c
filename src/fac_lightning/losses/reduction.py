"""Sums over what is kept: callers divide by their own counts."""

from __future__ import annotations

from torch import Tensor

__all__ = ["masked_mean", "masked_sum", "segment_sum"]


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of ``values`` ``(...)`` where ``mask`` ``(...)`` is True; shape ``()``. What is masked may be NaN."""
    return values.masked_fill(~mask, 0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` ``(...)`` where ``mask`` ``(...)`` is True; exactly 0 when nothing is kept. Shape ``()``."""
    return masked_sum(values, mask) / mask.sum().clamp_min(1)


def segment_sum(values: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Sums ``(num_segments,)`` of ``values`` ``(M,)`` by their segment ids ``(M,)``; an empty segment sums to 0."""
    return values.new_zeros(num_segments).index_add(0, segments, values)
