"""Drop most of a change at random and rescale the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.precision import widen
from fac_lightning.merging.task_arithmetic import task_arithmetic

__all__ = ["DareMerge", "dare"]


def dare(base: Tensor, tuned: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """``base + m (tuned - base) / density`` with ``m`` 1 with probability ``density``, else 0.

    Drop and rescale (https://arxiv.org/abs/2311.03099, eq. 1-2, where ``density`` is ``1 - p``): most of what
    fine-tuning changed is redundant, and its expectation is kept.

    Args:
        base: Any shape.
        tuned: Of the same shape.
        density: Share that is kept, above 0, at most 1; 1 keeps all and draws nothing.
        generator: Draws the mask, on the CPU whatever the device of the tensors: equal seeds give equal masks.

    Returns:
        A new tensor with the dtype of ``tuned``.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    if density == 1:
        return tuned.clone()
    a, b = widen(base, tuned)
    kept = (torch.rand(a.shape, generator=generator) < density).to(a.device)
    return (b - a).mul_(kept).div_(density).add_(a).to(tuned.dtype)


class DareMerge(MergeMethod):
    """Keep a random share of what each tuned model changed, rescaled, and add it to the base.

    Args:
        density: Share that is kept.
        alpha: Factor on the sum of the changes.
        alphas: Pattern of names -> alpha in its place; the first that matches counts.
        weights: Of each model's change; None is 1 each.
        seed: Draws the masks; a tensor's mask depends on this, its name and the model's place alone.
    """

    def __init__(
        self,
        density: float = 0.5,
        alpha: float = 1.0,
        alphas: dict[str, float] | None = None,
        weights: list[float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(alpha, alphas, weights)
        if not 0 < density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {density}")
        self.density, self.seed = density, seed

    def merge(self, name: str, base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
        """Merged tensor of one name."""
        wide_base, *wide = widen(base, *tuned)
        thinned = [dare(wide_base, one, self.density, self._generator(name, i)) for i, one in enumerate(wide)]
        return task_arithmetic(wide_base, thinned, self.alpha_of(name), self.weights).to(tuned[0].dtype)

    def _generator(self, name: str, model: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{model}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
