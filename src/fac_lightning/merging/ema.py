"""The exponential moving average of weights."""

from __future__ import annotations

from torch import Tensor

from fac_lightning.merging.linear import linear_merge

__all__ = ["ema"]


def ema(average: Tensor, current: Tensor, decay: float) -> Tensor:
    """``decay * average + (1 - decay) * current``.

    Keep the average in float32: steps of a thousandth vanish in bfloat16.

    Args:
        average: So far; any shape.
        current: Of the same shape.
        decay: 0 to 1, usually 0.999 or 0.9999.

    Returns:
        A new tensor with the dtype of ``average``.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be between 0 and 1, got {decay}")
    return linear_merge(current, average, decay)
