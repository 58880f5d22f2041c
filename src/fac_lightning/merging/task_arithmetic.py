"""Adding up what several trainings changed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.precision import widen

__all__ = ["TaskArithmeticMerge", "add_update", "task_arithmetic"]


def task_arithmetic(
    base: Tensor, tuned: Sequence[Tensor], alpha: float = 1.0, weights: Sequence[float] | None = None
) -> Tensor:
    """``base + alpha * sum(w_i (tuned_i - base))``.

    Task vectors (https://arxiv.org/abs/2212.04089): differences to the base are added up; a negative weight unlearns.

    Args:
        base: Any shape.
        tuned: At least one, of the same shape.
        alpha: The paper's scaling term; 0 gives the base bit for bit.
        weights: Of each difference; None is 1 each.

    Returns:
        A new tensor with the dtype of ``tuned[0]``.
    """
    dtype = tuned[0].dtype
    base, *wide = widen(base, *tuned)
    update = (wide[0] - base).mul_(1.0 if weights is None else weights[0])
    for i, tensor in enumerate(wide[1:], start=1):
        update.add_((tensor - base).mul_(1.0 if weights is None else weights[i]))
    return add_update(base, update, alpha).to(dtype)


def add_update(base: Tensor, update: Tensor, alpha: float) -> Tensor:
    """``base + alpha * update``; ``update`` is used up. Alpha 0 gives the base bit for bit, signs of zero included."""
    return base.clone() if alpha == 0 else update.mul_(alpha).add_(base)


class TaskArithmeticMerge(MergeMethod):
    """Add what the tuned models changed to the base.

    Args:
        alpha: Factor on the sum of the changes.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
        weights: Of each model's change; None is 1 each, so that the changes are added and not averaged.
    """

    elementwise = True

    def __init__(
        self, alpha: float = 1.0, alphas: dict[str, float] | None = None, weights: list[float] | None = None
    ) -> None:
        super().__init__(alpha, alphas, weights)

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name."""
        return task_arithmetic(base, tuned, self.alpha_of(name), self.weights)
