"""The weighted mean of tensors, exact where they are equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fac_lightning.merging.precision import widen

__all__ = ["weighted_mean"]


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """``sum(w_i x_i) / sum(w_i)`` of tensors of one shape; equal tensors give themselves, bit for bit.

    Args:
        tensors: At least one.
        weights: Of each, not negative; None weighs them alike.

    Returns:
        A new tensor with the dtype of the first.

    Raises:
        ValueError: No tensor, another number of weights, or weights that are negative or all zero.
    """
    given = [1.0] * len(tensors) if weights is None else [float(weight) for weight in weights]
    if not tensors or len(given) != len(tensors):
        raise ValueError(f"a mean needs tensors and as many weights, got {len(tensors)} and {len(given)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not any(given):
        raise ValueError(f"weights must not be negative and not all be 0, got {given}")
    used = [(tensor, weight) for tensor, weight in zip(widen(*tensors), given, strict=True) if weight > 0]
    mean, total = used[0]
    # Step by step towards each next one: where all are equal every step is exactly 0.
    for tensor, weight in used[1:]:
        total += weight
        mean = (tensor - mean).mul_(weight / total).add_(mean)
    return mean.to(tensors[0].dtype, copy=len(used) == 1)
