"""Mixing models by how well each does a few examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.linear import linear_merge
from fac_lightning.merging.mean import weighted_mean
from fac_lightning.merging.precision import widen

__all__ = ["LMCocktailMerge", "lm_cocktail_weights"]


def lm_cocktail_weights(losses: Sequence[float], tau: float = 5.0) -> list[float]:
    """``softmax(-loss / tau)``: weights of models by their losses on a few examples of the target task.

    LM-Cocktail (https://arxiv.org/abs/2311.13534, eq. 2).

    Args:
        losses: One for each model: its mean loss on about five examples, on output tokens alone.
        tau: Temperature; smaller trusts the losses more.

    Returns:
        Positive numbers with sum 1.
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau}")
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise ValueError(f"losses must be numbers, one for each model, got {list(losses)}")
    least = min(losses)
    powers = [math.exp((least - loss) / tau) for loss in losses]
    return [power / math.fsum(powers) for power in powers]


class LMCocktailMerge(MergeMethod):
    """Mix the fine-tuned model with the base and other models, which are weighted by few-shot losses.

    ``alpha * tuned_1 + (1 - alpha) * sum(w_i model_i)`` (https://arxiv.org/abs/2311.13534, eq. 1), where the sum runs
    over the base and the tuned models behind the first.

    Args:
        losses: Of the base and of each tuned model behind the first, in this order, on examples of the target task.
        alpha: Weight of the first tuned model.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
        tau: Temperature of the softmax over the losses.
    """

    elementwise = True

    def __init__(
        self, losses: list[float], alpha: float = 0.5, alphas: dict[str, float] | None = None, tau: float = 5.0
    ) -> None:
        super().__init__(alpha, alphas)
        self.losses, self.tau = list(losses), tau
        self.mixture = lm_cocktail_weights(self.losses, tau)

    def check(self, num_tuned: int) -> None:
        """Nothing, if there is a loss for every model of the mixture.

        Raises:
            ValueError: There is not.
        """
        if len(self.losses) != num_tuned:
            raise ValueError(
                f"LMCocktailMerge: {len(self.losses)} losses are given but {num_tuned} are needed: one for the base "
                f"and one for each of the {num_tuned - 1} tuned models behind the first"
            )

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name."""
        wide_base, first, *others = widen(base, *tuned)
        mixture = weighted_mean([wide_base, *others], self.mixture)
        return linear_merge(mixture, first, self.alpha_of(name)).to(tuned[0].dtype)

    def merge_new(self, tuned: Sequence[Tensor]) -> Tensor:
        """What a tensor becomes that only tuned models have: that of the first, the model of the target task."""
        return tuned[0].clone()
