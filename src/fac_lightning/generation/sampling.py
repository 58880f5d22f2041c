"""Choosing the next token from logits: pure functions on whole batches.

Randomness comes in as one uniform number per row, so a row's choice depends on its own numbers only: the same row
gives the same tokens alone, in any batch and on any device.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Decoding", "Sampling", "draw", "penalize_repetition", "pick", "shortlist", "uniforms"]


@dataclass(frozen=True)
class Sampling:
    """How one stream picks its tokens. The default is greedy.

    Args:
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Tokens that may be drawn, the most likely ones; 0 allows all.
        top_p: Draw from the smallest set of likely tokens whose probability reaches this; 1 allows all.
        repetition_penalty: Above 1 makes tokens less likely that the reply already holds (arXiv 1909.05858, 4.1).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1 allows all tokens")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be above 0, got {self.repetition_penalty}; 1 changes nothing")


@dataclass(frozen=True)
class Decoding:
    """How a reply is decoded.

    Args:
        text: Sampling of the text head.
        speech: Sampling of the speech head.
        max_positions: Longest reply in backbone positions, what is written before speech included; a longer one is cut
            and marked unfinished.
        seed: Row ``i`` of a batch, or turn ``i`` of a session, draws from ``seed + i``.
    """

    text: Sampling = field(default_factory=Sampling)
    speech: Sampling = field(default_factory=Sampling)
    max_positions: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a reply of no positions."""
        if self.max_positions < 1:
            raise ValueError(f"max_positions must be at least 1, got {self.max_positions}")


def uniforms(seeds: list[int], shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Random numbers in [0, 1): ``(B, *shape)``, row ``i`` drawn from ``seeds[i]`` alone."""
    rows = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits ``(B, V)`` with those of ``seen`` ``(B, V)`` bool moved down: divided when positive, else multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def shortlist(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, the most likely first: logits ``(B, K)`` and ids ``(B, K)``.

    ``top_k`` keeps that many (0 all). Of these, ``top_p`` keeps the smallest set that reaches that probability
    (arXiv 1904.09751); what is left out has logits of -inf. Both in one sort, the costliest part of sampling.
    """
    if 0 < top_k < logits.shape[-1]:
        ordered, ids = logits.topk(top_k, dim=-1)
    else:
        ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    if top_p < 1.0:
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs  # probability of all that is more likely
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return ordered, ids


def draw(ordered: Tensor, ids: Tensor, uniform: Tensor) -> Tensor:
    """Tokens ``(B,)`` of a shortlist by its inverse distribution function at ``uniform`` ``(B,)`` in [0, 1).

    A token at -inf is never drawn.
    """
    total = ordered.softmax(-1).cumsum(-1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
    last = (ordered > -torch.inf).sum(-1, keepdim=True) - 1  # rounding may point behind the last possible token
    return ids.gather(-1, torch.minimum(place, last)).squeeze(-1)


def pick(logits: Tensor, sampling: Sampling, uniform: Tensor, seen: Tensor | None = None) -> Tensor:
    """Next tokens ``(B,)`` of logits ``(B, V)``: penalty, temperature, top-k, top-p, then the draw.

    Args:
        logits: ``(B, V)``; forbidden tokens at -inf.
        sampling: What to do with them.
        uniform: ``(B,)`` in [0, 1); not looked at when greedy.
        seen: ``(B, V)`` bool, tokens that the reply already holds; None penalises nothing.
    """
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1.0:
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return draw(*shortlist(logits / sampling.temperature, sampling.top_k, sampling.top_p), uniform)
