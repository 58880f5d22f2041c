"""The contract of preference losses: scores of pairs -> what each pair costs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fac_lightning.losses.scores import PairScores

__all__ = ["PreferenceLoss"]


class PreferenceLoss(nn.Module, ABC):
    """Say what each pair of answers costs.

    Contract: pairs do not see each other; a pair costs the same in any batch. What a loss remembers of earlier pairs
    lies in buffers and moves at ``end_step`` only, so that accumulating two batches gives what one batch gives.

    Args:
        beta: How far the policy may leave the reference: less lets it go further.
        nu: Log-ratios are divided by ``length ** nu``: 0 sums over tokens, 1 takes their mean.
    """

    needs_reference: bool = True  # rewards are ratios to a reference model

    def __init__(self, beta: float = 0.1, nu: float = 0.0) -> None:
        super().__init__()
        if beta <= 0:
            raise ValueError(f"beta must be above 0, got {beta}")
        if not 0 <= nu <= 1:
            raise ValueError(f"nu must lie between 0 (sums over tokens) and 1 (means), got {nu}")
        self.beta, self.nu = beta, nu

    def rewards(self, scores: PairScores) -> Tensor:
        """Rewards ``(2, P)`` of chosen and rejected answers: beta times their log-ratio."""
        return self.beta * scores.log_ratios(self.nu)

    @abstractmethod
    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""

    def end_step(self) -> None:
        """An optimizer step is over: move what is remembered. Most losses remember nothing."""

    def extra_repr(self) -> str:
        """Numbers for ``repr``."""
        return f"beta={self.beta}, nu={self.nu}"
