"""Time and depth nested: a transformer over the frames of a reply, and in each frame one over its codebooks.

Legend: H groups to say, U replies, k frames per group, Q codebooks, D width of the backbone, W width of the temporal
transformer, B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.depth import DepthHead
from fac_lightning.heads.frame_state import FrameState
from fac_lightning.heads.labels import check_groups, said_before, shown
from fac_lightning.heads.rows import ragged_rows
from fac_lightning.heads.split import Split, start_small
from fac_lightning.heads.transformer import CausalTransformer
from fac_lightning.types import HeadOutput, eos_code, pad_code

__all__ = ["NestedRefinedHead"]


class NestedRefinedHead(SpeechHead):
    """Say a group frame by frame, seeing the reply, and each frame codebook by codebook, seeing that frame.

    The refined head of the Fun-Audio-Chat report (https://arxiv.org/abs/2512.20156, equations 2-4) for codecs of many
    codebooks. A temporal transformer takes one place a frame: the frame's share of the hidden state plus the summed
    embeddings of the frame before. From its state a ``DepthHead`` says the frame. A reply costs k temporal passes a
    group instead of the k x Q of ``RefinedHead``, and its cache is shorter by Q; the k x Q passes that are left go
    through the small transformer. With one codebook ``RefinedHead`` does the same for less.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        width: Width of the temporal transformer.
        num_layers: Blocks of the temporal transformer.
        num_heads: Attention heads of the temporal transformer.
        ffn_dim: Width inside its feed-forward; 3 x ``width`` when None.
        depth_width: Width of the depth transformer; half of ``width`` when None.
        depth_layers: Blocks of the depth transformer.
        depth_heads: Attention heads of the depth transformer; half of ``num_heads`` when None.
        weights_per_codebook: As in ``DepthHead``.
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
        depth_width: int | None = None,
        depth_layers: int = 2,
        depth_heads: int | None = None,
        weights_per_codebook: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._set_sizes(dim, group_size, codebook_size, num_codebooks)
        self.split = Split(dim, group_size, width)
        self.embed = CodeTable(codebook_size, num_codebooks, width)
        self.transformer = CausalTransformer(width, num_layers, num_heads, ffn_dim or 3 * width, gradient_checkpointing)
        self.depth = DepthHead(
            width,
            1,
            codebook_size,
            num_codebooks,
            width=depth_width or width // 2,
            num_layers=depth_layers,
            num_heads=depth_heads or max(1, num_heads // 2),
            weights_per_codebook=weights_per_codebook,
            gradient_checkpointing=gradient_checkpointing,
        )
        start_small(self.split, self.embed)

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``; see ``SpeechHead.forward``."""
        check_groups(hidden, labels, reply_lengths, self.codebook_size)
        frames, lengths = labels.flatten(0, 1), reply_lengths * self.group_size
        rows = ragged_rows(lengths, hidden.device)
        previous = said_before(shown(frames, self.codebook_size), rows.starts, self.codebook_size)  # (H * k, Q)
        inputs = self.split(hidden).flatten(0, 1) + self.embed.frames(previous)
        states = self.transformer(inputs, rows.position_ids, rows.layout)  # (H * k, W)
        said = self.depth.score(states, frames.unsqueeze(1), lengths)
        return HeadOutput(*(x.view(labels.shape) for x in (said.logprobs, said.correct, said.mask)))

    def new_state(self, batch_size: int) -> FrameState:
        """State of ``batch_size`` fresh replies."""
        return FrameState.fresh(batch_size, [self.transformer], self.embed)

    def new_slots(self, num_slots: int) -> FrameState:
        """State of replies that come and go, none so far."""
        return FrameState.of_slots(num_slots, [self.transformer], self.embed)

    def step(
        self, hidden: Tensor, state: FrameState, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        ended = torch.zeros(hidden.shape[0], 1, dtype=torch.bool, device=hidden.device)
        said = []
        for condition in self.split(hidden).unbind(1):
            states = self.transformer.step(condition + self.embed.frames(state.previous), state.caches[0])
            codes = self.depth.step(states, None, sample)[:, 0].masked_fill(ended, pad_code(self.codebook_size))
            ended = ended | (codes == eos_code(self.codebook_size)).any(1, keepdim=True)
            state.previous = codes
            said.append(codes)
        return torch.stack(said, 1)
