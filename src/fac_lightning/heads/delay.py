"""Delayed codebooks: one pass says codes of several frames, the later codebooks of earlier ones.

Legend: H groups to say, U replies, k frames per group, Q codebooks, P passes per group, D width of the backbone,
W width of the head, B rows of a generation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.code_table import CodeTable
from fac_lightning.heads.frame_state import FrameState
from fac_lightning.heads.labels import ask, check_groups, end_after_eos, group_output, said_before, shown
from fac_lightning.heads.rows import ragged_rows
from fac_lightning.heads.split import Split, start_small
from fac_lightning.heads.transformer import CausalTransformer
from fac_lightning.types import HeadOutput, pad_code

__all__ = ["DelayHead"]


class DelayHead(SpeechHead):
    """Say codebook ``q`` of frame ``f`` in pass ``f + delays[q]``, all codes of a pass at once, seeing the reply.

    The delay pattern of MusicGen (https://arxiv.org/abs/2306.05284, section 2.2), laid inside the group as in the
    patch decoder of MiMo-Audio (https://arxiv.org/abs/2512.23808): ``k + max(delays)`` passes a group. A pass sees all
    passes of the reply before it, so codebook ``q`` knows the lower ones of its frame as far as its delay exceeds
    theirs. With delays of 0 the codebooks of a frame are said in parallel.

    The delays do not run on into the next group, as they would in a model at the frame rate: the next group is said
    from a hidden state that has read all of this one, so a group must be complete when its position ends. A reply
    therefore ends with its last group, and no tail is left to say.

    Args:
        dim: Width of the backbone.
        group_size: Frames per backbone position, k.
        codebook_size: Codes per codebook, special codes not counted.
        num_codebooks: Q.
        delays: Frames by which each codebook is late, from 0 for the first and never falling; ``0, 1, .. Q - 1`` when
            None. Moshi's are ``0, 1, 1, ..``.
        width: Width of the head's transformer.
        num_layers: Blocks.
        num_heads: Attention heads.
        ffn_dim: Width inside the feed-forward; 3 x ``width`` when None.
        gradient_checkpointing: Recompute blocks in the backward pass to save memory.
    """

    pass_of: Tensor
    frame_before: Tensor

    def __init__(
        self,
        dim: int,
        group_size: int,
        codebook_size: int,
        num_codebooks: int = 1,
        delays: list[int] | None = None,
        width: int = 512,
        num_layers: int = 4,
        num_heads: int = 8,
        ffn_dim: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._set_sizes(dim, group_size, codebook_size, num_codebooks)
        self.delays = tuple(range(num_codebooks) if delays is None else delays)
        if len(self.delays) != num_codebooks or self.delays[0] != 0 or sorted(self.delays) != list(self.delays):
            raise ValueError(
                f"delays {list(self.delays)} do not fit {num_codebooks} codebooks: give one per codebook, 0 for the "
                "first and none below the one before; or leave them out for 0, 1, 2 .."
            )
        self._lay_out()
        self.split = Split(dim, len(self.passes), width)
        self.embed = CodeTable(codebook_size, num_codebooks, width)
        self.transformer = CausalTransformer(width, num_layers, num_heads, ffn_dim or 3 * width, gradient_checkpointing)
        self.output = nn.Linear(width, num_codebooks * (codebook_size + 1), bias=False)
        start_small(self.split, self.embed, self.output)

    def _lay_out(self) -> None:
        """Which places each pass says, and which frames it is shown."""
        k, codebooks = self.group_size, range(self.num_codebooks)
        times = sorted({frame + delay for frame in range(k) for delay in self.delays})  # without idle ones
        self.passes = tuple(
            tuple((time - self.delays[q], q) for q in codebooks if 0 <= time - self.delays[q] < k) for time in times
        )
        pass_of, frame_before = torch.zeros(k, len(codebooks), dtype=torch.long, device="cpu"), []
        for index, places in enumerate(self.passes):
            for frame, codebook in places:
                pass_of[frame, codebook] = index
            last = {q: frame + 1 for frame, q in self.passes[index - 1]} if index else dict.fromkeys(codebooks, 0)
            frame_before.append([last.get(q, k + 1) for q in codebooks])
        # real also in a model built without memory
        self.register_buffer("pass_of", pass_of, persistent=False)  # (k, Q)
        # (P, Q) into the last frame of the group before, the frames of the group, and one of pad
        self.register_buffer("frame_before", torch.tensor(frame_before, device="cpu"), persistent=False)

    @property
    def order(self) -> tuple[int, ...]:
        """Pass after pass; see ``SpeechHead.order``."""
        return tuple(frame * self.num_codebooks + codebook for places in self.passes for frame, codebook in places)

    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels ``(H, k, Q)`` given hidden states ``(H, dim)``; see ``SpeechHead.forward``."""
        check_groups(hidden, labels, reply_lengths, self.codebook_size)
        rows = ragged_rows(reply_lengths * len(self.passes), hidden.device)
        first_groups = rows.starts // len(self.passes)
        groups = self._ended(shown(labels, self.codebook_size))
        before = said_before(groups[:, -1], first_groups, self.codebook_size)
        inputs = self.split(hidden) + self.embed.frames(self._before(before, groups, self.frame_before))
        states = self.transformer(inputs.flatten(0, 1), rows.position_ids, rows.layout)  # (H * P, W)
        places = states.view(-1, len(self.passes), inputs.shape[-1])[:, self.pass_of]  # (H, k, Q, W)
        return group_output(places.flatten(0, 1), self.output.weight, labels, self.codebook_size)

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
        condition, matrices = self.split(hidden), self.output.weight.unflatten(0, (self.num_codebooks, -1))
        size = (hidden.shape[0], self.group_size, self.num_codebooks)
        group = torch.full(size, pad_code(self.codebook_size), device=hidden.device)
        for index, places in enumerate(self.passes):
            before = self._before(state.previous, group, self.frame_before[index : index + 1])[:, 0]
            states = self.transformer.step(condition[:, index] + self.embed.frames(before), state.caches[0])
            for frame, codebook in places:
                group[:, frame, codebook] = ask(states, matrices[codebook], sample)
            group = self._ended(group)
        state.previous = group[:, -1]
        return group

    def _before(self, previous: Tensor, groups: Tensor, frame_before: Tensor) -> Tensor:
        """What was said in the pass before ``(H, P, Q)``, of the frame before a group ``(H, Q)`` and of the group.

        The first pass is shown the whole frame before, a codebook that says nothing in the pass before shows pad.
        """
        frames = torch.cat([previous.unsqueeze(1), groups, torch.full_like(groups[:, :1], self.embed.pad)], 1)
        before: Tensor = frames[:, frame_before, torch.arange(self.num_codebooks, device=groups.device)]
        return before

    def _ended(self, groups: Tensor) -> Tensor:
        """Groups ``(H, k, Q)`` without what stands behind ``eos``.

        Labels fill the ending frame with eos, generation says the first one only: neither is shown to later passes,
        which still say codes of earlier frames.
        """
        return end_after_eos(groups.flatten(1), self.codebook_size).view(groups.shape)
