"""Losses that compare the two answers of a pair against a reference."""

from __future__ import annotations

from torch import Tensor

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.preference import (
    apo_down_loss,
    cdpo_loss,
    discopop_loss,
    dpo_loss,
    exo_loss,
    hinge_loss,
    ipo_loss,
    robust_dpo_loss,
)
from fac_lightning.losses.scores import PairScores

__all__ = [
    "APODownLoss",
    "ConservativeDPOLoss",
    "DPOLoss",
    "DiscoPOPLoss",
    "EXOLoss",
    "HingeLoss",
    "IPOLoss",
    "NormalizedDPOLoss",
    "RobustDPOLoss",
]


class DPOLoss(PreferenceLoss):
    """Direct preference optimisation, TRL's ``sigmoid`` (https://arxiv.org/abs/2305.18290).

    Args:
        beta: How far the policy may leave the reference: less lets it go further.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return dpo_loss(chosen, rejected)


class NormalizedDPOLoss(DPOLoss):
    """DPO on log-ratios per token, TRL's ``sigmoid_norm``: neither long answers nor the faster stream rule.

    Speech has about eight times as many tokens as text, so sums over both streams are sums over speech.

    Args:
        beta: How far the policy may leave the reference; larger than in DPO, as ratios are means.
    """

    def __init__(self, beta: float = 0.3) -> None:
        super().__init__(beta, nu=1.0)


class ConservativeDPOLoss(PreferenceLoss):
    """DPO that does not trust all labels (cDPO): its margin has an optimum at ``log((1 - e) / e)``.

    Args:
        beta: How far the policy may leave the reference.
        label_smoothing: Share e of the pairs that may be swapped, in [0, 0.5).
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.1, nu: float = 0.0) -> None:
        super().__init__(beta, nu)
        self.label_smoothing = _share(label_smoothing)

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return cdpo_loss(chosen, rejected, self.label_smoothing)


class RobustDPOLoss(ConservativeDPOLoss):
    """DPO that is right on average where a share of the labels is swapped (https://arxiv.org/abs/2403.00409).

    Args:
        beta: How far the policy may leave the reference.
        label_smoothing: Share of the pairs that are swapped, in [0, 0.5).
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return robust_dpo_loss(chosen, rejected, self.label_smoothing)


class HingeLoss(PreferenceLoss):
    """Nothing once the reward margin is 1 (https://arxiv.org/abs/2305.10425).

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return hinge_loss(chosen, rejected)


class IPOLoss(PreferenceLoss):
    """Identity preference optimisation on log-ratios per token (https://arxiv.org/abs/2310.12036).

    Args:
        beta: The margin of log-ratios is drawn to ``1 / (2 beta)``.
    """

    def __init__(self, beta: float = 0.1) -> None:
        super().__init__(beta, nu=1.0)

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = scores.log_ratios(self.nu)
        return ipo_loss(chosen, rejected, self.beta)


class EXOLoss(PreferenceLoss):
    """Reverse KL to the label, TRL's ``exo_pair`` (https://arxiv.org/abs/2402.00856).

    Args:
        beta: How far the policy may leave the reference.
        label_smoothing: Probability that the label gives to the rejected answer, in (0, 0.5).
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 1e-3, nu: float = 0.0) -> None:
        super().__init__(beta, nu)
        self.label_smoothing = _share(label_smoothing)
        if label_smoothing == 0:
            raise ValueError(
                "label_smoothing must be above 0: the reverse KL to a certain label is infinite; take 1e-3"
            )

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return exo_loss(chosen, rejected, self.label_smoothing)


class APODownLoss(PreferenceLoss):
    """Both answers down, the rejected further (https://arxiv.org/abs/2408.06266).

    Args:
        beta: How far the policy may leave the reference.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return apo_down_loss(chosen, rejected)


class DiscoPOPLoss(PreferenceLoss):
    """The loss that a language model found, TRL's ``discopop`` (https://arxiv.org/abs/2406.08414).

    Args:
        beta: How far the policy may leave the reference.
        temperature: Of the blend between its two halves.
        nu: Log-ratios are divided by ``length ** nu``.
    """

    def __init__(self, beta: float = 0.1, temperature: float = 0.05, nu: float = 0.0) -> None:
        super().__init__(beta, nu)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        chosen, rejected = self.rewards(scores)
        return discopop_loss(chosen, rejected, self.temperature)


def _share(label_smoothing: float) -> float:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing must lie in [0, 0.5), got {label_smoothing}: at 0.5 the labels say nothing, above it "
            "swap chosen and rejected"
        )
    return label_smoothing
