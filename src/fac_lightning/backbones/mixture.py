"""The loss that keeps a mixture of experts in balance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["load_balancing_loss"]


def load_balancing_loss(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """How far a router is from giving all experts the same work: ``top_k`` when even, more otherwise. Shape ().

    The number of experts times the sum over experts of the fraction of positions that went to each and the mean
    probability that it got, both over all layers and positions (equations 4 to 6 of https://arxiv.org/abs/2101.03961).
    A packed line has no padding, so every position counts, and a prompt that rows share counts once.

    Args:
        router_logits: Per layer ``(N, experts)``; N may be 0, which costs nothing.
        top_k: Experts per position.
    """
    probabilities = torch.cat(list(router_logits)).float().softmax(-1)  # (layers * N, experts)
    rows, experts = probabilities.shape
    chosen = probabilities.detach().topk(top_k, dim=-1).indices
    share = torch.zeros(experts, device=chosen.device).scatter_add_(
        0, chosen.flatten(), torch.ones_like(chosen.flatten(), dtype=torch.float32)
    )
    loss: Tensor = experts * (share * probabilities.sum(0)).sum() / max(rows, 1) ** 2
    return loss
