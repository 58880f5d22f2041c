"""The slot ``method`` of a merge: how the tensors of one name become one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fac_lightning.merging.mean import weighted_mean
from fac_lightning.patterns import matches

__all__ = ["MergeMethod"]


class MergeMethod(ABC):
    """Merges the tensors that a base model and one or more tuned models hold under one name.

    Contract: nothing that is given is changed; the arithmetic is float32 (float64 where a tensor is), the result has
    the dtype of ``tuned[0]``; alpha 0 gives the base bit for bit; equal models stay what they are.

    Args:
        alpha: How much of what tuning changed is kept: 0 is the base, 1 (with one tuned model) what was tuned, as far
            as the method allows it. Values outside extrapolate.
        alphas: Pattern of names (``backbone.model.layers.0``, ``*.mlp.*``) -> alpha in its place; the first that
            matches counts.
        weights: Of the tuned models against each other; None weighs them alike.
    """

    #: Whether an element of the result depends on the elements at its place alone, so that blocks may be merged apart.
    elementwise: bool = False

    def __init__(
        self, alpha: float, alphas: dict[str, float] | None = None, weights: Sequence[float] | None = None
    ) -> None:
        for name, value in {"alpha": alpha, **(alphas or {})}.items():
            if not math.isfinite(value):
                raise ValueError(f"alpha must be a number, got {name} = {value}")
        self.alpha, self.alphas = float(alpha), dict(alphas or {})
        self.weights = None if weights is None else [float(weight) for weight in weights]

    @abstractmethod
    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name.

        Args:
            name: Under which the result is stored.
            base: Any shape, floating point.
            tuned: Of the shape of ``base``, one for each tuned model.
        """

    def merge_new(self, tuned: Sequence[Tensor]) -> Tensor:
        """What a tensor becomes that only tuned models have: their weighted mean."""
        return weighted_mean(tuned, self.weights if self.weights and len(self.weights) == len(tuned) else None)

    def alpha_of(self, name: str) -> float:
        """Alpha of one tensor."""
        return next((alpha for pattern, alpha in self.alphas.items() if matches(pattern, name)), self.alpha)

    def check(self, num_tuned: int) -> None:
        """Nothing, if the method can merge that many tuned models.

        Raises:
            ValueError: It cannot.
        """
        if self.weights is not None and len(self.weights) != num_tuned:
            raise ValueError(
                f"{type(self).__name__}: {len(self.weights)} weights are given but {num_tuned} tuned models; "
                "give one for each, or none to weigh them alike"
            )

    def describe(self) -> dict[str, Any]:
        """Class and plain settings, for reports."""
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **plain}
