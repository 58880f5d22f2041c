"""What heads share that say the codes of a group one after the other, codebook by codebook and frame by frame.

Legend: H groups to say, U replies, k frames per group, Q codebooks, S = k x Q codes per group, D width of the backbone,
W width of the head, R rows in which codes see each other, B rows of a generation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.labels import ask, check_groups, group_output, said_before, shown
from fac_lightning.heads.row_state import RowState
from fac_lightning.heads.rows import Rows
from fac_lightning.heads.split import Split, start_small
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache
from fac_lightning.slot_cache import SlotCache
from fac_lightning.types import HeadOutput, bos_code, eos_code, pad_code

__all__ = ["ChainHead", "ChainState"]


@dataclass
class ChainState(RowState):
    """State of a generation; moves on with every step."""

    caches: tuple[KeyValueCache | SlotCache]  # keys and values of the codes so far
    previous: Tensor  # (B,) int64, last code said
    bos: int


class ChainHead(SpeechHead):
    """A small causal transformer over codes, of which ``rows`` says how far back they see.

    The hidden state is projected and split into one vector per frame, the embedding of the code before is added, and
    the transformer predicts the code.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        width: Width of the transformer.
        num_layers: Blocks.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward; 3 x ``width`` when None.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
        matrices: Of each linear layer of the transformer; codebook ``q`` takes number ``q % matrices``.
    """

    def __init__(
        self,
        dim: int,
        group_size: int,
        codebook_size: int,
        num_codebooks: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int | None,
        gradient_checkpointing: bool,
        matrices: int = 1,
    ) -> None:
        super().__init__()
        self._set_sizes(dim, group_size, codebook_size, num_codebooks)
        self.width = width
        self.split = Split(dim, group_size, width)
        self.embed = CodeTable(codebook_size, num_codebooks, width)
        self.transformer = CausalTransformer(
            width, num_layers, num_heads, ffn_dim or 3 * width, gradient_checkpointing, matrices
        )
        self.output = nn.Linear(width, num_codebooks * (codebook_size + 1), bias=False)
        start_small(self.split, self.embed, self.output)

    @abstractmethod
    def rows(self, reply_lengths: Tensor, groups: int, device: torch.device) -> Rows:
        """Rows ``(R,)`` of codes that see each other, given groups per reply ``(U,)`` and all ``groups``, H."""

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``; see ``SpeechHead.forward``."""
        check_groups(hidden, labels, reply_lengths, self.codebook_size)
        return self.score(hidden, labels, reply_lengths, text_embeds)

    def score(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """``forward`` for labels that were checked."""
        places = self.states(hidden, labels, reply_lengths, text_embeds)
        return group_output(places, self.output.weight, labels, self.codebook_size)

    def states(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> Tensor:
        """States ``(H * k, Q, W)`` from which the codes are read off; arguments as for ``forward``."""
        rows = self.rows(reply_lengths, hidden.shape[0], hidden.device)
        previous = said_before(shown(labels, self.codebook_size).flatten(), rows.starts, self.codebook_size)
        # the code before a frame's codebook q is of codebook q - 1, or the last one of the frame before
        tables = (torch.arange(self.num_codebooks, device=hidden.device) - 1) % self.num_codebooks
        inputs = self._condition(hidden, text_embeds).unsqueeze(2) + self.embed(previous.view_as(labels), tables)
        states: Tensor = self.transformer(inputs.flatten(0, 2), rows.position_ids, rows.layout)  # (H * S, W)
        return states.view(-1, self.num_codebooks, self.width)

    def begin(self, batch_size: int, capacity: int = 64) -> ChainState:
        """State of ``batch_size`` fresh rows; ``capacity`` codes have room at once."""
        bos = bos_code(self.codebook_size)
        before = torch.full((batch_size,), bos, device=self.embed.weight.device)
        return ChainState((KeyValueCache(len(self.transformer.blocks), batch_size, capacity),), before, bos)

    def begin_slots(self, num_slots: int, capacity: int = 128) -> ChainState:
        """State of rows that come and go, none so far; ``capacity`` codes have room at once."""
        before = torch.zeros(0, dtype=torch.int64, device=self.embed.weight.device)
        return ChainState((SlotCache(num_slots, capacity, before.device),), before, bos_code(self.codebook_size))

    def say(
        self, hidden: Tensor, state: ChainState, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """The next group ``(B, k, Q)`` of each row after ``hidden`` ``(B, dim)``; ``state`` moves on."""
        condition = self._condition(hidden, text_embeds)  # (B, k, W)
        matrices = self.output.weight.unflatten(0, (self.num_codebooks, -1))
        ended = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        said = []
        for index in range(self.group_size * self.num_codebooks):
            frame, codebook = divmod(index, self.num_codebooks)
            inputs = condition[:, frame] + self.embed(state.previous, (codebook - 1) % self.num_codebooks)
            states = self.transformer.step(inputs, state.caches[0])
            codes = ask(states, matrices[codebook], sample).masked_fill(ended, pad_code(self.codebook_size))
            ended = ended | (codes == eos_code(self.codebook_size))
            state.previous = codes
            said.append(codes)
        return torch.stack(said, 1).view(-1, self.group_size, self.num_codebooks)

    def _condition(self, hidden: Tensor, text_embeds: Tensor | None) -> Tensor:
        """One vector per frame ``(H, k, W)`` of hidden states ``(H, dim)``."""
        vectors: Tensor = self.split(hidden)
        return vectors
