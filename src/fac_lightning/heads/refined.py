"""The Speech Refined Head: one backbone position opens into a group of codes, each seeing all before it.

Legend: H groups to say, U replies, k frames per group, Q codebooks, S = k x Q codes per group, D width of the backbone,
W width of the head, B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.labels import check_labels, labelled_logprobs, spread_logits
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache
from fac_lightning.packed import packed_layout
from fac_lightning.types import IGNORE, HeadOutput, bos_code, code_vocab_size, eos_code, pad_code

__all__ = ["RefinedHead", "RefinedState", "TextRefinedHead"]


@dataclass
class RefinedState:
    """State of a generation; moves on with every step."""

    cache: KeyValueCache  # keys and values of the reply so far
    previous: Tensor  # (B,) int64, last code said


class RefinedHead(SpeechHead):
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

    code_offsets: Tensor

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
        super().__init__()
        self.dim, self.group_size, self.codebook_size, self.num_codebooks = (
            dim,
            group_size,
            codebook_size,
            num_codebooks,
        )
        self.width = width
        self.split = nn.Linear(dim, group_size * width)  # W_p
        self.embed = nn.Embedding(num_codebooks * code_vocab_size(codebook_size), width)
        self.transformer = CausalTransformer(width, num_layers, num_heads, ffn_dim or 3 * width, gradient_checkpointing)
        self.output = nn.Linear(width, num_codebooks * (codebook_size + 1), bias=False)
        # Condition and previous code start alike, and small beside what the blocks add: on toy codes this reaches a
        # given loss in about half the steps of PyTorch's defaults. Backbones give hidden states of unit size.
        nn.init.normal_(self.split.weight, std=0.1 * dim**-0.5)
        nn.init.zeros_(self.split.bias)
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.output.weight, std=0.02)
        # the code before a frame's codebook q is of codebook q - 1, or the last one of the frame before
        tables = (torch.arange(num_codebooks) - 1) % num_codebooks
        self.register_buffer("code_offsets", tables * code_vocab_size(codebook_size), persistent=False)

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``; see ``SpeechHead.forward``."""
        if int(reply_lengths.sum()) != hidden.shape[0] or labels.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"{hidden.shape[0]} hidden states, {labels.shape[0]} groups of labels and reply_lengths that sum to "
                f"{int(reply_lengths.sum())} do not agree; pass one label group and one hidden state per group said"
            )
        check_labels(labels, self.codebook_size)
        per_group, device = self.group_size * self.num_codebooks, hidden.device
        lengths = reply_lengths[reply_lengths > 0].cpu() * per_group  # codes per reply
        starts = lengths.cumsum(0) - lengths
        position_ids = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)

        said = labels.where(labels != IGNORE, pad_code(self.codebook_size)).flatten()  # (H * S,)
        previous = said.roll(1).index_fill(0, starts.to(device), bos_code(self.codebook_size))
        inputs = self._condition(hidden, text_embeds).unsqueeze(2) + self._embed(previous.view_as(labels))
        states = self.transformer(inputs.flatten(0, 2), position_ids.to(device), packed_layout(lengths, device))

        states = states.view(-1, self.num_codebooks, self.width)  # (H * k, Q, W)
        matrices = self.output.weight.unflatten(0, (self.num_codebooks, -1))  # (Q, codebook_size + 1, W)
        found = [
            labelled_logprobs(states[:, q], matrices[q], labels[..., q].flatten(), self.codebook_size)
            for q in range(self.num_codebooks)
        ]
        return HeadOutput(
            logprobs=torch.stack([f[0] for f in found], -1).view(labels.shape),
            correct=torch.stack([f[1] for f in found], -1).view(labels.shape),
            mask=labels != IGNORE,
        )

    def new_state(self, batch_size: int) -> RefinedState:
        """State of ``batch_size`` fresh replies."""
        device = self.embed.weight.device
        return RefinedState(
            cache=KeyValueCache(len(self.transformer.blocks), batch_size),
            previous=torch.full((batch_size,), bos_code(self.codebook_size), device=device),
        )

    def step(
        self,
        hidden: Tensor,
        state: RefinedState,
        sample: Callable[[Tensor], Tensor],
        text_embeds: Tensor | None = None,
    ) -> Tensor:
        """Say the next group ``(B, k, Q)`` after ``hidden`` ``(B, dim)``; see ``SpeechHead.step``."""
        condition = self._condition(hidden, text_embeds)  # (B, k, W)
        matrices = self.output.weight.unflatten(0, (self.num_codebooks, -1))
        ended = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        said = []
        for index in range(self.group_size * self.num_codebooks):
            frame, codebook = divmod(index, self.num_codebooks)
            inputs = condition[:, frame] + self._embed_one(state.previous, codebook)
            states = self.transformer.step(inputs, state.cache)
            logits = nn.functional.linear(states, matrices[codebook].to(states.dtype)).float()
            codes = sample(spread_logits(logits)).masked_fill(ended, pad_code(self.codebook_size))
            ended = ended | (codes == eos_code(self.codebook_size))
            state.previous = codes
            said.append(codes)
        return torch.stack(said, 1).view(-1, self.group_size, self.num_codebooks)

    def _condition(self, hidden: Tensor, text_embeds: Tensor | None) -> Tensor:
        """One vector per frame ``(H, k, W)`` of hidden states ``(H, dim)``."""
        vectors: Tensor = self.split(hidden)
        return vectors.view(-1, self.group_size, self.width)

    def _embed(self, previous: Tensor) -> Tensor:
        """Embeddings ``(..., Q, W)`` of the codes ``(..., Q)`` said before each place; pad codes embed to zero."""
        embeds: Tensor = self.embed(previous + self.code_offsets)
        return embeds.masked_fill((previous == pad_code(self.codebook_size))[..., None], 0)

    def _embed_one(self, previous: Tensor, codebook: int) -> Tensor:
        """Embeddings ``(B, W)`` of the codes ``(B,)`` said before a place of ``codebook``."""
        embeds: Tensor = self.embed(previous + self.code_offsets[codebook])
        return embeds.masked_fill((previous == pad_code(self.codebook_size))[:, None], 0)


class TextRefinedHead(RefinedHead):
    """A refined head that also sees the text token of the position, as in the released Fun-Audio-Chat.

    The condition is ``hidden + text_embeds``; the text embedding is detached, so that speech does not move it.
    """

    needs_text = True

    def _condition(self, hidden: Tensor, text_embeds: Tensor | None) -> Tensor:
        if text_embeds is None:
            raise ValueError("this head needs the text embeddings of the positions: pass text_embeds (H, dim)")
        return super()._condition(hidden + text_embeds.detach(), None)
