"""The Speech Refined Head of the released Fun-Audio-Chat.

It differs from the report's (``refined.py``) in four ways: its context is the whole row of positions, prompt included;
it adds the detached embedding of the position's text token to the hidden state; condition and previous code meet at the
backbone's width, before they are projected to the head's; and its output matrix is the code adapter's table.

Legend: N positions of a packed line, k frames per group, D width of the backbone, W width of the head, V rows of the
table, B rows of a generation, L positions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.row_state import RowState
from fac_lightning.hf_packed import (
    ATTENTION_NAME,
    cached_forward,
    packed_forward,
    register_packed_attention,
    slot_forward,
)
from fac_lightning.losses import chunked_logprobs
from fac_lightning.slot_cache import PIECE, SlotCache
from fac_lightning.types import IGNORE, HeadOutput, code_rows, eos_code, pad_code

__all__ = ["FunAudioHead", "FunAudioSlots", "FunAudioState"]


@dataclass
class FunAudioState:
    """State of a conversation; moves on with every position."""

    cache: Any  # keys and values of all positions so far, k to a backbone position
    mask: Tensor  # (B, k * L) bool, False on padding
    position: Tensor  # (B,) int64, next one of each row
    previous: Tensor  # (B,) int64, row of the last code


@dataclass
class FunAudioSlots(RowState):
    """State of conversations that come and go; moves on with every position."""

    caches: tuple[SlotCache]  # keys and values, k to a backbone position
    previous: Tensor  # (R,) int64, row of the last code
    bos: int  # row before the first code: that of pad


class FunAudioHead(SpeechHead):
    """Say a group of codes one after the other, having read the whole row of positions.

    Position ``p`` says the group of position ``p + 1``: its hidden state and text embedding are added and projected to
    ``k`` vectors, the table row of the code before is added to each, and a causal transformer at the code rate gives
    the state whose product with the table are the logits (``audio_invert_tower`` of the released model;
    https://arxiv.org/abs/2512.20156 equations 2-4 in its own way).

    The special codes ``bos`` and ``pad`` have rows of the table too; the lead-in of ``bos`` codes is learned.

    Args:
        dim: Width of the backbone and of the table.
        group_size: Frames per backbone position, k.
        codebook_size: Codes, special codes not counted.
        transformer: Configuration of the transformer as transformers names it, with its ``model_type``, for example
            ``{"model_type": "qwen3", "hidden_size": 1024, ...}``. Its own vocabulary is not used.
        table_rows: Rows of the table, V; ``codebook_size + 3`` when None.
        bos_row: Row of ``bos``; behind the codes when None.
        eos_row: Row of ``eos``; behind ``bos`` when None.
        pad_row: Row of ``pad``; behind ``eos`` when None.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.
    """

    rows: Tensor
    num_codebooks = 1
    needs_text = True
    whole_sequence = True
    says_special = True
    tied = True

    def __init__(
        self,
        dim: int,
        group_size: int,
        codebook_size: int,
        transformer: dict[str, Any],
        table_rows: int | None = None,
        bos_row: int | None = None,
        eos_row: int | None = None,
        pad_row: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.group_size, self.codebook_size = dim, group_size, codebook_size
        rows = code_rows(codebook_size, table_rows, bos_row, eos_row, pad_row)
        self.register_buffer("rows", rows, persistent=False)
        self.pad_row = int(rows[-1])
        self.transformer = _transformer(transformer, gradient_checkpointing)
        width = int(self.transformer.config.hidden_size)
        self.split = nn.Linear(dim, group_size * dim)  # W_p
        self.input = nn.Linear(dim, width, bias=False)
        self.output = nn.Linear(width, dim, bias=False)
        self.table = nn.Parameter(torch.empty(table_rows or codebook_size + 3, dim))
        for weight in (self.split.weight, self.input.weight, self.output.weight, self.table):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.split.bias)

    def tie(self, table: nn.Parameter) -> None:
        """Say codes with the table ``(V, dim)`` of the code adapter."""
        if table.shape != self.table.shape:
            raise ValueError(
                f"the code adapter's table is {tuple(table.shape)}, the head's {tuple(self.table.shape)}: "
                "give both the same codebook_size, table_rows and dim"
            )
        self.table = table

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(N, k, 1)`` given hidden states ``(N, dim)`` of whole rows.

        Args:
            hidden: Of every position, row after row.
            labels: The group said from each position, or IGNORE.
            reply_lengths: Positions per row ``(R,)``.
            text_embeds: ``(N, dim)``, zero where a position has no text.
        """
        if int(reply_lengths.sum()) != hidden.shape[0] or labels.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"{hidden.shape[0]} hidden states, {labels.shape[0]} groups of labels and lengths that sum to "
                f"{int(reply_lengths.sum())} do not agree; pass one label group and one hidden state per position"
            )
        self._check_labels(labels)
        if not len(hidden):
            return self._nothing(labels)
        lengths = reply_lengths[reply_lengths > 0].cpu()
        starts = lengths.cumsum(0) - lengths
        positions = (torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)).to(hidden.device)
        targets = self.rows[labels.where(labels != IGNORE, pad_code(self.codebook_size))].flatten()  # (N * k,)
        previous = targets.roll(1).index_fill(0, starts.to(hidden.device) * self.group_size, self.pad_row)
        states = self.states(
            self.condition(hidden, text_embeds), previous.view(-1, self.group_size), positions, lengths
        )
        kept = (labels.flatten() != IGNORE).nonzero().squeeze(1)
        logprobs, correct = chunked_logprobs(states.flatten(0, 1).index_select(0, kept), self.table, targets[kept])
        size = labels.numel()
        return HeadOutput(
            logprobs=logprobs.new_zeros(size).index_copy(0, kept, logprobs).view(labels.shape),
            correct=correct.new_zeros(size).index_copy(0, kept, correct).view(labels.shape),
            mask=labels != IGNORE,
        )

    def condition(self, hidden: Tensor, text_embeds: Tensor | None) -> Tensor:
        """What the head knows of positions ``(..., dim)``: hidden state and, detached, the text token."""
        if text_embeds is None:
            raise ValueError("this head needs the text embeddings of the positions: pass text_embeds (..., dim)")
        return hidden + text_embeds.detach()

    def states(self, condition: Tensor, previous: Tensor | None, position_ids: Tensor, lengths: Tensor) -> Tensor:
        """States ``(N, k, dim)`` whose product with the table are the logits.

        Args:
            condition: ``(N, dim)`` of a packed line.
            previous: Rows of the table ``(N, k)``: the code before each place. None for no code at all, not even pad.
            position_ids: Of the backbone ``(N,)``; place ``i`` of position ``p`` is ``p * k + i``.
            lengths: Positions per row ``(R,)``.
        """
        embeds = None if previous is None else F.embedding(previous, self.table, padding_idx=self.pad_row)
        inputs = self._inputs(condition, embeds)
        places = position_ids[:, None] * self.group_size + torch.arange(self.group_size, device=position_ids.device)
        lengths = lengths * self.group_size
        hidden = packed_forward(self.transformer, inputs.flatten(0, 1), places.flatten(), lengths).last_hidden_state[0]
        states: Tensor = self.output(hidden).view(-1, self.group_size, self.dim)
        return states

    def new_state(self, batch_size: int) -> FunAudioState:
        """State of ``batch_size`` fresh rows."""
        from transformers import DynamicCache

        device = self.table.device
        return FunAudioState(
            cache=DynamicCache(config=self.transformer.config),
            mask=torch.ones(batch_size, 0, dtype=torch.bool, device=device),
            position=torch.zeros(batch_size, dtype=torch.int64, device=device),
            previous=torch.full((batch_size,), self.pad_row, device=device),
        )

    def new_slots(self, num_slots: int) -> FunAudioSlots:
        """State of conversations that come and go, none so far."""
        none, piece = torch.zeros(0, dtype=torch.int64, device=self.table.device), PIECE * self.group_size
        return FunAudioSlots((SlotCache(num_slots, 2 * piece, none.device, piece),), none, self.pad_row)

    def step(
        self,
        hidden: Tensor,
        state: FunAudioState | FunAudioSlots,
        sample: Callable[[Tensor], Tensor],
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """Say the next group ``(B, k, 1)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        vectors = self.split(self.condition(hidden, text_embeds)).unflatten(-1, (self.group_size, self.dim))
        ended = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        said = []
        for frame in range(self.group_size):
            logits = self.advance(vectors[:, frame, None], state)[:, self.rows]
            codes = sample(logits)
            state.previous = self.rows[codes]  # behind eos too: the reply rule decides what is remembered there
            said.append(codes.masked_fill(ended, pad_code(self.codebook_size)))
            ended = ended | (codes == eos_code(self.codebook_size))
        return torch.stack(said, 1)[..., None]

    def advance(self, vectors: Tensor, state: FunAudioState | FunAudioSlots, mask: Tensor | None = None) -> Tensor:
        """Logits ``(B, V)`` float32 of the last of new places ``(B, M, dim)``; ``state.previous`` is before them all.

        Args:
            vectors: Condition of each place, as ``split`` gives it.
            state: Moves on by M places; its ``previous`` is left to the caller.
            mask: ``(B, M)`` bool, False on padding.
        """
        embeds = F.embedding(state.previous, self.table)[:, None]
        hidden = self._feed(self.input(vectors + embeds), state, mask)[:, -1]
        return F.linear(self.output(hidden), self.table.to(hidden.dtype)).float()

    def read(
        self,
        hidden: Tensor,
        codes: Tensor,
        state: FunAudioState | FunAudioSlots,
        mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        row: int | None = None,
    ) -> None:
        """Take in positions ``(B, L, dim)`` whose groups ``(B, L, k, 1)`` are given; see ``SpeechHead.read``."""
        if hidden.shape[1] == 0:
            return
        reads = slice(None) if row is None else slice(row, row + 1)
        rows = self.rows[codes[..., 0]].flatten(1)  # (B, L * k)
        previous = torch.cat([state.previous[reads, None], rows[:, :-1]], 1).unflatten(1, (-1, self.group_size))
        inputs = self._inputs(self.condition(hidden, text_embeds), F.embedding(previous, self.table)).flatten(1, 2)
        self._feed(inputs, state, None if mask is None else mask.repeat_interleave(self.group_size, 1), row)
        state.previous = state.previous.clone()
        state.previous[reads] = rows[:, -1]

    def _inputs(self, condition: Tensor, previous: Tensor | None) -> Tensor:
        """Inputs ``(..., k, W)`` of conditions ``(..., dim)`` and embeddings of the codes before ``(..., k, dim)``."""
        vectors = self.split(condition).unflatten(-1, (self.group_size, self.dim))
        inputs: Tensor = self.input(vectors if previous is None else vectors + previous)
        return inputs

    def _feed(
        self, inputs: Tensor, state: FunAudioState | FunAudioSlots, mask: Tensor | None, row: int | None = None
    ) -> Tensor:
        """States ``(B, M, W)`` of new places ``(B, M, W)``."""
        if isinstance(state, FunAudioSlots):
            return slot_forward(self.transformer, inputs, state.caches[0], row)
        if mask is None:
            mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        counted = mask.cumsum(1)
        position_ids = (state.position[:, None] + counted - 1).clamp_min(0)
        state.mask = torch.cat([state.mask, mask], 1)
        state.position = state.position + counted[:, -1]
        return cached_forward(self.transformer, inputs, state.mask, position_ids, state.cache)

    def _nothing(self, labels: Tensor) -> HeadOutput:
        """Output for no positions; every parameter still has a gradient, as distributed training wants."""
        zero = sum((p.flatten()[:1].sum() * 0 for p in self.parameters() if p.requires_grad), self.table.new_zeros(()))
        mask = labels != IGNORE
        return HeadOutput(logprobs=torch.zeros_like(labels, dtype=torch.float32) + zero, correct=mask, mask=mask)

    def _check_labels(self, labels: Tensor) -> None:
        wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= pad_code(self.codebook_size)))]
        if wrong.numel():
            raise ValueError(
                f"speech label {int(wrong[0])} cannot be said: with codebook_size {self.codebook_size} labels are "
                f"0..{eos_code(self.codebook_size)} (bos and eos are the last two) or {IGNORE}; "
                "check that layout, tokenizer and head have the same codebook_size"
            )


def _transformer(entries: dict[str, Any], gradient_checkpointing: bool) -> Any:
    """A transformer of transformers without its token embedding."""
    from transformers import AutoConfig, AutoModel

    entries = copy.deepcopy(entries)
    if "model_type" not in entries:
        raise ValueError("transformer needs a model_type, for example 'qwen3'")
    register_packed_attention()
    entries |= {"vocab_size": 1, "pad_token_id": None}  # tokens come as embeddings: no table is made for them
    entries = {name: value for name, value in entries.items() if name not in ("torch_dtype", "dtype")}
    config = AutoConfig.for_model(entries.pop("model_type"), **entries)
    model = AutoModel.from_config(config, attn_implementation=ATTENTION_NAME)
    if gradient_checkpointing:  # it warns of a model without a token embedding
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
        model.disable_input_require_grads()
    model.set_input_embeddings(None)
    return model
