"""Interpolation along the great circle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.linear import linear_merge
from fac_lightning.merging.precision import widen

__all__ = ["SlerpMerge", "slerp"]

CHUNK = 1 << 20


def slerp(base: Tensor, tuned: Tensor, t: float, parallel: float = 0.9995) -> Tensor:
    """``[sin((1 - t) W) base + sin(t W) tuned] / sin W`` with ``W`` the angle between the two tensors.

    Spherical linear interpolation (Shoemake 1985, https://doi.org/10.1145/325165.325242) of a whole tensor as one
    vector: the length of the result does not shrink where the two point apart, as it does on the straight line.

    Args:
        base: Any shape.
        tuned: Of the same shape.
        t: 0 gives the base and 1 what was tuned, bit for bit.
        parallel: Where the cosine of the angle is at least this far from 0, or a tensor is zero, the straight line
            is taken: the formula divides by nearly nothing there.

    Returns:
        A new tensor with the dtype of ``tuned``.
    """
    if t in (0, 1):
        return linear_merge(base, tuned, t)
    a, b = widen(base, tuned)
    lengths = math.sqrt(_dot(a, a) * _dot(b, b))
    cosine = _dot(a, b) / lengths if lengths > 0 else 1.0
    if not abs(cosine) < parallel:
        return linear_merge(base, tuned, t)
    angle = math.acos(cosine)
    from_base, from_tuned = (math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))
    return (a * from_base).add_(b * from_tuned).to(tuned.dtype)


def _dot(a: Tensor, b: Tensor) -> float:
    """Summed in float64, chunk by chunk, so that large tensors lose no digits and need no copy."""
    chunks = zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True)
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in chunks)


class SlerpMerge(MergeMethod):
    """Interpolate along the great circle between the base and one tuned model, tensor by tensor.

    Args:
        alpha: Position on the way: 0 the base, 1 what was tuned.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
    """

    def __init__(self, alpha: float = 0.5, alphas: dict[str, float] | None = None) -> None:
        super().__init__(alpha, alphas)

    def check(self, num_tuned: int) -> None:
        """Nothing, for one tuned model.

        Raises:
            ValueError: There are several: a great circle joins two points.
        """
        if num_tuned != 1:
            raise ValueError(
                f"SlerpMerge merges a base with one tuned model, got {num_tuned}; merge them one after the other, or "
                "take LinearMerge, TaskArithmeticMerge, TiesMerge or DareMerge"
            )

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name."""
        return slerp(base, tuned[0], self.alpha_of(name))
