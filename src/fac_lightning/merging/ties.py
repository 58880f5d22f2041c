"""Trim, elect a sign, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.precision import widen
from fac_lightning.merging.task_arithmetic import add_update

__all__ = ["TiesMerge", "ties", "trim"]


def ties(
    base: Tensor, tuned: Sequence[Tensor], density: float, alpha: float = 1.0, weights: Sequence[float] | None = None
) -> Tensor:
    """Merge the changes of several models without letting small and contradicting ones interfere.

    TIES (https://arxiv.org/abs/2306.01708, section 4): of each change keep the ``density`` largest values; at every
    place elect the sign with the larger weighted sum; average the values that have it, ``sum(w d m) / sum(w m)``; add
    ``alpha`` times that to the base. With one model and density 1 it is task arithmetic.

    Args:
        base: Any shape.
        tuned: At least one, of the same shape.
        density: Kept share of each change, above 0, at most 1; counted over the whole tensor.
        alpha: The paper's lambda; 0 gives the base bit for bit.
        weights: Of each model, positive; None is 1 each.

    Returns:
        A new tensor with the dtype of ``tuned[0]``.
    """
    dtype = tuned[0].dtype
    factors = [1.0] * len(tuned) if weights is None else weights
    if any(weight <= 0 for weight in factors):
        raise ValueError(f"weights of TIES must be positive, got {list(factors)}; leave such a model out")
    base, *wide = widen(base, *tuned)
    deltas = [trim(tensor - base, density) for tensor in wide]
    elected = torch.zeros_like(base)
    for delta, weight in zip(deltas, factors, strict=True):
        elected.add_(delta * weight)
    elected.sign_()
    total, count = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(deltas, factors, strict=True):
        agrees = (delta.sign() == elected) & (delta != 0)
        total.add_(delta.mul_(agrees).mul_(weight))
        count.add_(agrees, alpha=weight)
    return add_update(base, total.div_(count.masked_fill_(count == 0, 1)), alpha).to(dtype)


def trim(delta: Tensor, density: float) -> Tensor:
    """Set all but the largest values to zero.

    Args:
        delta: Any shape.
        density: Kept share, above 0, at most 1; at least one value is kept, and all that equal the smallest kept.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    keep = max(1, round(density * delta.numel()))
    if keep >= delta.numel():
        return delta
    sizes = delta.abs()
    # numpy selects in place, without torch.kthvalue's second array of indices
    smallest = float(np.partition(sizes.flatten().cpu().numpy(), -keep)[-keep])
    return delta * (sizes >= smallest)


class TiesMerge(MergeMethod):
    """Merge the changes of the tuned models after trimming small values and electing a sign at every place.

    Args:
        density: Kept share of each change, per tensor.
        alpha: Factor on the merged change, the paper's lambda.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
        weights: Of the models; None is 1 each.
    """

    def __init__(
        self,
        density: float = 0.2,
        alpha: float = 1.0,
        alphas: dict[str, float] | None = None,
        weights: list[float] | None = None,
    ) -> None:
        super().__init__(alpha, alphas, weights)
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {density}")
        self.density = density

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name."""
        return ties(base, tuned, self.density, self.alpha_of(name), self.weights)
