"""Several preference losses as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.scores import PairScores

__all__ = ["MixedPreferenceLoss"]


class MixedPreferenceLoss(PreferenceLoss):
    """Weighted sum of losses. MPO is DPO, BCO and SFT with 0.8, 0.2 and 1 (https://arxiv.org/abs/2411.10442).

    Rewards are those of the first loss.

    Args:
        losses: One or more.
        weights: One of each.
    """

    def __init__(self, losses: Sequence[PreferenceLoss], weights: Sequence[float]) -> None:
        if not losses or len(losses) != len(weights):
            raise ValueError(
                f"{len(losses)} losses and {len(weights)} weights: give one weight to each loss, and a loss"
            )
        super().__init__(losses[0].beta, losses[0].nu)
        self.losses, self.weights = nn.ModuleList(losses), [float(weight) for weight in weights]
        self.needs_reference = any(loss.needs_reference for loss in losses)

    def rewards(self, scores: PairScores) -> Tensor:
        """Rewards ``(2, P)`` of the first loss."""
        rewards: Tensor = self.losses[0].rewards(scores)  # type: ignore[operator]
        return rewards

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        each = [weight * loss(scores) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(each).sum(0)

    def end_step(self) -> None:
        """Pass the word on."""
        for loss in self.losses:
            loss.end_step()  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Numbers for ``repr``."""
        return f"weights={self.weights}"
