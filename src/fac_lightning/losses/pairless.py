"""Losses that judge each answer alone against a reference; the pair only says which is good."""

from __future__ import annotations

import torch
from torch import Tensor

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.preference import apo_zero_loss, bco_loss, kto_loss, nca_loss, sppo_loss
from fac_lightning.losses.scores import PairScores

__all__ = ["APOZeroLoss", "BCOLoss", "KTOLoss", "NCALoss", "SPPOLoss"]


class NCALoss(PreferenceLoss):
    """Noise-contrastive alignment, TRL's ``nca_pair`` (https://arxiv.org/abs/2402.05369).

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return nca_loss(chosen, rejected)


class SPPOLoss(PreferenceLoss):
    """Self-play preference optimisation with hard labels, TRL's ``sppo_hard`` (https://arxiv.org/abs/2405.00675).

    Args:
        beta: Log-ratios are drawn to plus and minus ``1 / (2 beta)``.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = scores.log_ratios(self.nu)
        return sppo_loss(chosen, rejected, self.beta)


class APOZeroLoss(PreferenceLoss):
    """Chosen answers up, rejected answers down (https://arxiv.org/abs/2408.06266).

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return apo_zero_loss(chosen, rejected)


class _BaselineLoss(PreferenceLoss):
    """A loss with a running mean of rewards, which moves once an optimizer step.

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
        momentum: Share of the mean that a step keeps; 1 keeps it at 0.
    """

    baseline: Tensor
    seen: Tensor

    def __init__(self, beta: float = 0.1, nu: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(beta, nu)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
        self.momentum = momentum
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(2))  # sum and number of the rewards of this step

    def observe(self, rewards: Tensor, present: Tensor) -> None:
        """Remember rewards ``(2, P)`` of the pairs that count, ``present`` ``(P,)``, until the step ends."""
        if self.training:
            kept = rewards.detach().masked_fill(~present, 0).sum()
            self.seen += torch.stack([kept, 2 * present.sum().to(kept)])

    def end_step(self) -> None:
        """Move the baseline towards the mean reward of the step."""
        total, count = self.seen
        mean = torch.where(count > 0, total / count.clamp_min(1), self.baseline)
        self.baseline.copy_(self.momentum * self.baseline + (1 - self.momentum) * mean)
        self.seen.zero_()


class BCOLoss(_BaselineLoss):
    """Binary classification of each answer, TRL's ``bco_pair`` with its running mean of rewards.

    https://arxiv.org/abs/2404.04656

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
        momentum: Share of the mean that a step keeps; 1 keeps it at 0, the form without a baseline.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = rewards = self.rewards(scores)
        self.observe(rewards, scores.present)
        return bco_loss(chosen, rejected, self.baseline)


class KTOLoss(_BaselineLoss):
    """Kahneman-Tversky optimisation (https://arxiv.org/abs/2402.01306).

    The reward that an answer has on average is estimated by a running mean over earlier steps, at least 0, where the
    paper takes answers of other prompts.

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
        momentum: Share of the mean that a step keeps; 1 keeps it at 0.
        chosen_weight: Weight of good answers.
        rejected_weight: Weight of bad answers.
    """

    def __init__(
        self,
        beta: float = 0.1,
        nu: float = 0.0,
        momentum: float = 0.9,
        chosen_weight: float = 1.0,
        rejected_weight: float = 1.0,
    ) -> None:
        super().__init__(beta, nu, momentum)
        if min(chosen_weight, rejected_weight) < 0:
            raise ValueError(f"weights must not be negative, got {chosen_weight} and {rejected_weight}")
        self.chosen_weight, self.rejected_weight = chosen_weight, rejected_weight

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = rewards = self.rewards(scores)
        self.observe(rewards, scores.present)
        return kto_loss(chosen, rejected, self.baseline.clamp_min(0), self.chosen_weight, self.rejected_weight)
