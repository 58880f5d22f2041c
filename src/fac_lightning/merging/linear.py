"""Linear interpolation: the merge of Core-Cocktail."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.mean import weighted_mean
from fac_lightning.merging.precision import widen

__all__ = ["LinearMerge", "linear_merge"]


def linear_merge(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """``alpha * tuned + (1 - alpha) * base``: alpha weighs what was tuned.

    Core-Cocktail (https://arxiv.org/abs/2512.20156, eq. 7: ``M_r = alpha M_1 + (1 - alpha) M_0``; the report takes
    alpha = 0.5, DrVoice 0), which is also WiSE-FT (https://arxiv.org/abs/2109.01903).

    Args:
        base: ``M_0``, before training.
        tuned: ``M_1``, of the same shape.
        alpha: 0 gives the base and 1 what was tuned, bit for bit; values outside extrapolate.

    Returns:
        A new tensor with the dtype of ``tuned``.
    """
    if alpha == 0:
        return base.to(tuned.dtype, copy=True)
    if alpha == 1:
        return tuned.clone()
    start, end = widen(base, tuned)
    return torch.lerp(start, end, alpha).to(tuned.dtype)


class LinearMerge(MergeMethod):
    """Interpolate between the base and the tuned model, or the weighted mean of several: Core-Cocktail.

    With ``alpha=1`` and several tuned models it is a model soup (https://arxiv.org/abs/2203.05482).

    Args:
        alpha: Weight of what was tuned; the base has the rest.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
        weights: Of several tuned models against each other; None weighs them alike.
    """

    elementwise = True

    def __init__(
        self, alpha: float = 0.5, alphas: dict[str, float] | None = None, weights: list[float] | None = None
    ) -> None:
        super().__init__(alpha, alphas, weights)

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """``(1 - alpha) * base + alpha * mean(tuned)``."""
        alpha = self.alpha_of(name)
        if len(tuned) == 1:
            return linear_merge(base, tuned[0], alpha)
        return linear_merge(base, weighted_mean(widen(*tuned), self.weights), alpha).to(tuned[0].dtype)
