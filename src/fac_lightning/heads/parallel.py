"""All codes of a group at once: the one-shot alternative to the refined head.

Legend: H groups, k frames per group, Q codebooks, S = k x Q codes per group, D width of the backbone, B rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.labels import check_groups, end_after_eos, group_output, spread_logits
from fac_lightning.heads.row_state import NoRowState
from fac_lightning.types import HeadOutput

__all__ = ["ParallelHead"]


class ParallelHead(SpeechHead):
    """Say all codes of a group independently from one hidden state, with one output matrix per place.

    DrVoice's model "without refined head" (https://arxiv.org/abs/2506.09349). Cheap, but codes of one group do not
    know of each other.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        hidden_dim: Width of a SiLU layer before the output; None for a plain linear head.
    """

    def __init__(
        self, dim: int, group_size: int, codebook_size: int, num_codebooks: int = 1, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        self._set_sizes(dim, group_size, codebook_size, num_codebooks)
        self.body = nn.Identity() if hidden_dim is None else nn.Sequential(nn.Linear(dim, hidden_dim), nn.SiLU())
        self.output = nn.Linear(hidden_dim or dim, group_size * num_codebooks * (codebook_size + 1))

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``."""
        check_groups(hidden, labels, reply_lengths, self.codebook_size)
        vectors, places = self.body(hidden), self.group_size * self.num_codebooks
        states = vectors.unsqueeze(1).expand(-1, places, -1)
        return group_output(states, self.output.weight, labels, self.codebook_size, self.output.bias)

    def new_state(self, batch_size: int) -> None:
        """Nothing: a group depends on its hidden state alone."""

    def new_slots(self, num_slots: int) -> NoRowState:
        """Nothing to keep of replies that come and go."""
        return NoRowState()

    def step(
        self,
        hidden: Tensor,
        state: NoRowState | None,
        sample: Callable[[Tensor], Tensor],
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``."""
        places = self.group_size * self.num_codebooks
        logits = spread_logits(self.output(self.body(hidden)).float().unflatten(1, (places, -1)))  # (B, S, V)
        codes = torch.stack([sample(logits[:, place]) for place in range(places)], 1)
        return end_after_eos(codes, self.codebook_size).view(-1, self.group_size, self.num_codebooks)
