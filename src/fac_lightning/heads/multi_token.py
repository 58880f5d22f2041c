"""Multi-token prediction: a chain of small modules, each of which says the next frame of the group.

Legend: H groups to say, U replies, k frames per group, Q codebooks, D width of the backbone, W width of the head,
B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.frame_state import FrameState
from fac_lightning.heads.labels import ask, check_groups, end_after_eos, group_output, said_before, shown
from fac_lightning.heads.rows import Rows, ragged_rows
from fac_lightning.heads.split import start_small
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache
from fac_lightning.slot_cache import SlotCache
from fac_lightning.types import HeadOutput, eos_code, pad_code

__all__ = ["MultiTokenHead"]


class MultiTokenHead(SpeechHead):
    """Say frame ``i`` of a group by module ``i`` from the state of module ``i - 1`` and the frame before.

    The chained modules of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, equations 21-23), as VITA-Audio speaks with
    them (https://arxiv.org/abs/2505.03739): the normed embedding of the frame before and the normed state are
    concatenated, projected, and go through ``num_layers`` blocks that see the same frame of the reply's earlier
    groups. Embedding and output matrices are shared by all modules. k passes of a layer or so a group, whatever Q;
    the codebooks of a frame do not know of each other.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k, and modules.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        width: Width of the modules.
        num_layers: Blocks of each module.
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
        num_layers: int = 1,
        num_heads: int = 8,
        ffn_dim: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._set_sizes(dim, group_size, codebook_size, num_codebooks)
        self.input = nn.Linear(dim, width)
        self.embed = CodeTable(codebook_size, num_codebooks, width)
        self.predictors = nn.ModuleList(
            [
                _Predictor(width, num_layers, num_heads, ffn_dim or 3 * width, gradient_checkpointing)
                for _ in range(group_size)
            ]
        )
        self.output = nn.Linear(width, num_codebooks * (codebook_size + 1), bias=False)
        start_small(self.input, self.embed, self.output)

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``; see ``SpeechHead.forward``."""
        check_groups(hidden, labels, reply_lengths, self.codebook_size)
        rows, frames = ragged_rows(reply_lengths, hidden.device), shown(labels, self.codebook_size)
        before = said_before(frames[:, -1], rows.starts, self.codebook_size)  # (H, Q)
        frames_before = torch.cat([before.unsqueeze(1), frames[:, :-1]], 1)  # (H, k, Q)
        state, states = self.input(hidden), []
        for predictor, embeds in zip(self.predictors, self.embed.frames(frames_before).unbind(1), strict=True):
            state = predictor(state, embeds, rows)
            states.append(state)
        places = torch.stack(states, 1).flatten(0, 1).unsqueeze(1).expand(-1, self.num_codebooks, -1)
        return group_output(places, self.output.weight, labels, self.codebook_size)

    def new_state(self, batch_size: int) -> FrameState:
        """State of ``batch_size`` fresh replies."""
        return FrameState.fresh(batch_size, self._transformers(), self.embed)

    def new_slots(self, num_slots: int) -> FrameState:
        """State of replies that come and go, none so far."""
        return FrameState.of_slots(num_slots, self._transformers(), self.embed)

    def _transformers(self) -> list[CausalTransformer]:
        return [cast(_Predictor, predictor).transformer for predictor in self.predictors]

    def step(
        self, hidden: Tensor, state: FrameState, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        matrices = self.output.weight.unflatten(0, (self.num_codebooks, -1))
        ended = torch.zeros(hidden.shape[0], 1, dtype=torch.bool, device=hidden.device)
        known, said = self.input(hidden), []
        for predictor, cache in zip(self.predictors, state.caches, strict=True):
            known = cast(_Predictor, predictor).step(known, self.embed.frames(state.previous), cache)
            codes = torch.stack([ask(known, matrix, sample) for matrix in matrices], 1)  # (B, Q)
            codes = end_after_eos(codes, self.codebook_size).masked_fill(ended, pad_code(self.codebook_size))
            ended = ended | (codes == eos_code(self.codebook_size)).any(1, keepdim=True)
            state.previous = codes
            said.append(codes)
        return torch.stack(said, 1)


class _Predictor(nn.Module):
    """One module of the chain."""

    def __init__(self, width: int, num_layers: int, num_heads: int, ffn_dim: int, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.code_norm, self.state_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.proj = nn.Linear(2 * width, width, bias=False)
        self.transformer = CausalTransformer(width, num_layers, num_heads, ffn_dim, gradient_checkpointing)

    def forward(self, state: Tensor, embeds: Tensor, rows: Rows) -> Tensor:
        """States ``(H, W)`` after the states of the module before and embeddings of the frames before, ``(H, W)``."""
        joined: Tensor = self.transformer(self._join(state, embeds), rows.position_ids, rows.layout)
        return joined

    def step(self, state: Tensor, embeds: Tensor, cache: KeyValueCache | SlotCache) -> Tensor:
        """The same for the next group of B rows ``(B, W)``."""
        return self.transformer.step(self._join(state, embeds), cache)

    def _join(self, state: Tensor, embeds: Tensor) -> Tensor:
        joined: Tensor = self.proj(torch.cat([self.code_norm(embeds), self.state_norm(state)], -1))
        return joined
