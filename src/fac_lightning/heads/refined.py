"""The Speech Refined Head: one backbone position opens into a group of codes, each seeing all of the reply before it.

Legend: H groups to say, U replies, k frames per group, Q codebooks, D width of the backbone, B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fac_lightning.heads.chain import ChainHead, ChainState
from fac_lightning.heads.rows import Rows, ragged_rows

__all__ = ["RefinedHead", "TextRefinedHead"]


class RefinedHead(ChainHead):
    """Say a group of codes one after the other with a small causal transformer of its own.

    Equations 2-4 of the Fun-Audio-Chat report (https://arxiv.org/abs/2512.20156): the hidden state is projected and
    split into one vector per frame, the embedding of the previous code is added, and a causal transformer at the code
    rate predicts the code. Its context is the reply. With several codebooks the codes of a frame follow each other.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        width: Width of the head's transformer; the head costs k x Q passes a position, so it is the size to choose
            with care.
        num_layers: Blocks.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward; 3 x ``width`` when None.
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
        )

    def rows(self, reply_lengths: Tensor, groups: int, device: torch.device) -> Rows:
        """Replies."""
        return ragged_rows(reply_lengths * self.group_size * self.num_codebooks, device)

    def new_state(self, batch_size: int) -> ChainState:
        """State of ``batch_size`` fresh replies."""
        return self.begin(batch_size)

    def new_slots(self, num_slots: int) -> ChainState:
        """State of replies that come and go, none so far."""
        return self.begin_slots(num_slots)

    def step(
        self, hidden: Tensor, state: ChainState, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        return self.say(hidden, state, sample, text_embeds)


class TextRefinedHead(RefinedHead):
    """A refined head that also sees the text token of the position, as in the released Fun-Audio-Chat.

    The condition is ``hidden + text_embeds``; the text embedding is detached, so that speech does not move it.
    """

    needs_text = True

    def _condition(self, hidden: Tensor, text_embeds: Tensor | None) -> Tensor:
        if text_embeds is None:
            raise ValueError("this head needs the text embeddings of the positions: pass text_embeds (H, dim)")
        return super()._condition(hidden + text_embeds.detach(), None)
