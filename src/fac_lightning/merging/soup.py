"""Model soups: the mean of several fine-tuned models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.merging.mean import weighted_mean

__all__ = ["GreedySoup", "greedy_soup", "uniform_soup"]


@dataclass(frozen=True)
class GreedySoup:
    """A soup and what went into it."""

    weights: dict[str, Tensor]  # name -> mean, any shape
    members: tuple[int, ...]  # places of the models in it, best first
    score: float


def uniform_soup(models: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Mean of state dicts (https://arxiv.org/abs/2203.05482); a soup of equal models is the model, bit for bit.

    Args:
        models: At least one, all with the same names and shapes.
        weights: Of each; None weighs them alike.

    Returns:
        New tensors, floating point ones with the dtype of the first model, others copied from it.

    Raises:
        ValueError: Names or shapes differ, or tensors that are no floating point ones.
    """
    if not models:
        raise ValueError("a soup needs at least one model")
    first = models[0]
    for i, model in enumerate(models[1:], start=1):
        if strange := sorted(first.keys() ^ model.keys()):
            raise ValueError(f"models 0 and {i} hold different tensors: {', '.join(strange[:3])} only in one of them")
    soup = {}
    for name, tensor in first.items():
        same = [model[name] for model in models]
        if tensor.is_floating_point():
            soup[name] = weighted_mean(same, weights)
        elif all(torch.equal(tensor, other) for other in same):
            soup[name] = tensor.clone()
        else:
            raise ValueError(f"{name} is {tensor.dtype} and differs between the models: it has no mean")
    return soup


def greedy_soup(models: Sequence[Mapping[str, Tensor]], score: Callable[[Mapping[str, Tensor]], float]) -> GreedySoup:
    """Add models to a soup as long as it does not get worse (https://arxiv.org/abs/2203.05482, recipe 1).

    The models are tried from the best to the worst by their own score; each stays in if the mean with it scores at
    least as high as without.

    Args:
        models: At least one, all with the same names and shapes.
        score: Judges a candidate's weights, higher is better; called ``2 n - 1`` times for ``n`` models.
    """
    if not models:
        raise ValueError("a soup needs at least one model")
    alone = [score(model) for model in models]
    order = sorted(range(len(models)), key=lambda i: -alone[i])
    members, best, soup = [order[0]], alone[order[0]], uniform_soup([models[order[0]]])
    for i in order[1:]:
        candidate = uniform_soup([models[j] for j in (*members, i)])
        if (reached := score(candidate)) >= best:
            members, best, soup = [*members, i], reached, candidate
    return GreedySoup(soup, tuple(members), best)
