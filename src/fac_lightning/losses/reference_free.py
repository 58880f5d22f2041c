"""Losses on the policy's own log-probabilities per token: no reference is asked."""

from __future__ import annotations

from torch import Tensor

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.preference import dpo_loss, orpo_loss
from fac_lightning.losses.scores import PairScores

__all__ = ["ORPOLoss", "SFTLoss", "SimPOLoss"]


class _ReferenceFree(PreferenceLoss):
    """Rewards are log-probabilities per token.

    Args:
        beta: Factor on them.
    """

    needs_reference = False

    def __init__(self, beta: float) -> None:
        super().__init__(beta, nu=1.0)

    def rewards(self, scores: PairScores) -> Tensor:
        """Rewards ``(2, P)``: beta times the log-probability per token."""
        return self.beta * scores.logprobs(self.nu)


class SimPOLoss(_ReferenceFree):
    """Simple preference optimisation (https://arxiv.org/abs/2405.14734).

    Args:
        beta: Factor on the log-probabilities per token.
        gamma: Margin that rewards should have; 0.5 to 1.5 in the paper.
    """

    def __init__(self, beta: float = 2.0, gamma: float = 0.5) -> None:
        super().__init__(beta)
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        self.gamma = gamma

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return dpo_loss(chosen, rejected, self.gamma)


class ORPOLoss(_ReferenceFree):
    """Odds-ratio preference optimisation: likelihood of the chosen answer and odds in one (arXiv 2403.07691).

    Args:
        beta: Weight of the odds.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta)

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = scores.logprobs(self.nu)
        return orpo_loss(chosen, rejected, self.beta)


class SFTLoss(_ReferenceFree):
    """Negative log-likelihood of the chosen answer per token: a term for ``MixedPreferenceLoss``."""

    def __init__(self) -> None:
        super().__init__(beta=1.0)

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        return scores.nll()[0]
