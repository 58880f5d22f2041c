"""The depth transformer: the codes of a group one after the other, and nothing of other groups.

Legend: H groups to say, k frames per group, Q codebooks, B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fac_lightning.heads.chain import ChainHead
from fac_lightning.heads.row_state import NoRowState
from fac_lightning.heads.rows import Rows, equal_rows

__all__ = ["DepthHead"]


class DepthHead(ChainHead):
    """Say the codes of a group one after the other from the hidden state and the codes of this group alone.

    The depth transformer of RQ-Transformer (https://arxiv.org/abs/2203.01941) and of Moshi
    (https://arxiv.org/abs/2410.00037, section 3.4), over all frames of a group: what was said before it is known only
    through the backbone, which has read it. The cache is as long as a group, however long the reply.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        width: Width of the transformer; k x Q passes a position go through it.
        num_layers: Blocks.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward; 3 x ``width`` when None.
        weights_per_codebook: Every codebook has linear layers of its own inside the blocks, as in Moshi: Q times the
            parameters at the same cost a pass.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
    """

    def __init__(
        self,
        dim: int,
        group_size: int,
        codebook_size: int,
        num_codebooks: int = 1,
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        ffn_dim: int | None = None,
        weights_per_codebook: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            dim,
            group_size,
            codebook_size,
            num_codebooks,
            width,
            num_layers,
            num_heads,
            ffn_dim,
            gradient_checkpointing,
            matrices=num_codebooks if weights_per_codebook else 1,
        )

    def rows(self, reply_lengths: Tensor, groups: int, device: torch.device) -> Rows:
        """Groups."""
        return equal_rows(groups, self.group_size * self.num_codebooks, device)

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
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        state_of_group = self.begin(hidden.shape[0], capacity=self.group_size * self.num_codebooks)
        return self.say(hidden, state_of_group, sample, text_embeds)
