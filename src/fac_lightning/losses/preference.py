"""Preference losses as pure functions: what one pair of answers costs, for P pairs at a time.

Every function takes and gives ``(P,)``. ``chosen`` and ``rejected`` are *rewards*: beta times the log-ratio of policy
and reference, summed or per token. Where a loss is written in log-ratios or log-probabilities, its arguments say so.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "apo_down_loss",
    "apo_zero_loss",
    "bco_loss",
    "cdpo_loss",
    "discopop_loss",
    "dpo_loss",
    "exo_loss",
    "hinge_loss",
    "ipo_loss",
    "kto_loss",
    "nca_loss",
    "orpo_loss",
    "robust_dpo_loss",
    "sppo_loss",
]


def dpo_loss(chosen: Tensor, rejected: Tensor, margin: float = 0.0) -> Tensor:
    """-log sigma(chosen - rejected - margin): equation 7 of DPO (https://arxiv.org/abs/2305.18290).

    With log-probabilities per token for rewards and a margin above 0 it is SimPO (https://arxiv.org/abs/2405.14734).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def cdpo_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float) -> Tensor:
    """DPO that takes a share ``label_smoothing`` of the pairs to be swapped (conservative DPO, Mitchell 2023)."""
    margin = chosen - rejected
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust_dpo_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float) -> Tensor:
    """DPO whose mean over swapped labels is that over true ones (https://arxiv.org/abs/2403.00409); may be negative."""
    margin = chosen - rejected
    noisy = -(1 - label_smoothing) * F.logsigmoid(margin) + label_smoothing * F.logsigmoid(-margin)
    return noisy / (1 - 2 * label_smoothing)


def hinge_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Nothing once the margin is 1 (SLiC, https://arxiv.org/abs/2305.10425)."""
    return F.relu(1 - (chosen - rejected))


def ipo_loss(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """Squared distance of the margin of log-ratios per token from ``1 / (2 beta)`` (https://arxiv.org/abs/2310.12036).

    The margin has an optimum instead of growing without end.
    """
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()


def exo_loss(chosen: Tensor, rejected: Tensor, label_smoothing: float) -> Tensor:
    """Reverse KL between the policy's and the label's view of a pair (https://arxiv.org/abs/2402.00856)."""
    margin = chosen - rejected
    win, lose = F.logsigmoid(margin), F.logsigmoid(-margin)
    return win.exp() * (win - math.log(1 - label_smoothing)) + lose.exp() * (lose - math.log(label_smoothing))


def nca_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Noise contrast of each answer alone; keeps the chosen answer likely (https://arxiv.org/abs/2402.05369)."""
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_loss(chosen: Tensor, rejected: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    """Each answer classified alone, good or bad, against a baseline (https://arxiv.org/abs/2404.04656)."""
    return -F.logsigmoid(chosen - baseline) - F.logsigmoid(-(rejected - baseline))


def kto_loss(
    chosen: Tensor,
    rejected: Tensor,
    baseline: Tensor | float = 0.0,
    chosen_weight: float = 1.0,
    rejected_weight: float = 1.0,
) -> Tensor:
    """Value of each answer alone as people feel gains and losses (KTO, https://arxiv.org/abs/2402.01306).

    ``baseline`` is the reward that an answer of the policy has on average, at least 0.
    """
    good, bad = torch.sigmoid(chosen - baseline), torch.sigmoid(baseline - rejected)
    return chosen_weight * (1 - good) + rejected_weight * (1 - bad)


def sppo_loss(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """Log-ratios drawn to ``+-1 / (2 beta)`` (hard SPPO, https://arxiv.org/abs/2405.00675)."""
    return (chosen_ratio - 0.5 / beta).square() + (rejected_ratio + 0.5 / beta).square()


def apo_zero_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Chosen answers up, rejected down: for chosen answers better than the policy (https://arxiv.org/abs/2408.06266)."""
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Both answers down, the rejected further: for a policy better than both (https://arxiv.org/abs/2408.06266)."""
    return torch.sigmoid(chosen) + 1 - torch.sigmoid(chosen - rejected)


def discopop_loss(chosen: Tensor, rejected: Tensor, temperature: float = 0.05) -> Tensor:
    """Logistic and exponential loss, blended by the margin (https://arxiv.org/abs/2406.08414)."""
    margin = chosen - rejected
    blend = torch.sigmoid(margin / temperature)
    return (1 - blend) * -F.logsigmoid(margin) + blend * torch.exp(-margin)


def orpo_loss(chosen_logprob: Tensor, rejected_logprob: Tensor, beta: float) -> Tensor:
    """Likelihood of the chosen answer and the odds against the rejected one (https://arxiv.org/abs/2403.07691).

    Args:
        chosen_logprob: ``(P,)`` per token, at most 0.
        rejected_logprob: ``(P,)`` per token, at most 0.
        beta: Weight of the odds.
    """
    # a certain answer has infinite odds, and a stream that is not there has the log-probability 0
    win, lose = chosen_logprob.clamp_max(-1e-6), rejected_logprob.clamp_max(-1e-6)
    odds = (win - lose) - (torch.log(-torch.expm1(win)) - torch.log(-torch.expm1(lose)))
    return -chosen_logprob - beta * F.logsigmoid(odds)
