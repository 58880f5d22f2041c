"""What model and head remember of a conversation: all state of generation that outlives a reply.

Legend: B rows, L new positions, D width, k frames of a group, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fac_lightning.generation.prefix import Prefix
from fac_lightning.heads.base import SpeechHead
from fac_lightning.models import SpeechLM
from fac_lightning.types import pad_code

__all__ = ["BackboneState", "HeadMemory", "read_silence"]


class BackboneState:
    """What the backbone remembers of B rows.

    Args:
        model: Whose backbone steps.
        batch_size: Rows, B.
    """

    def __init__(self, model: SpeechLM, batch_size: int) -> None:
        device = next(model.parameters()).device
        self.backbone, self.cache = model.backbone, model.backbone.new_cache()
        self.mask = torch.ones(batch_size, 0, dtype=torch.bool, device=device)
        self.position = torch.zeros(batch_size, dtype=torch.int64, device=device)  # next one of each row

    def feed(self, embeds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states ``(B, L, D)`` of new positions ``(B, L, D)``, padding where ``mask`` ``(B, L)`` is False."""
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        counted = mask.cumsum(1)
        position_ids = (self.position[:, None] + counted - 1).clamp_min(0)
        self.mask = torch.cat([self.mask, mask], dim=1)
        self.position = self.position + counted[:, -1]
        return self.backbone.step(embeds, self.mask, position_ids, self.cache)


class HeadMemory:
    """What the speech head remembers of B rows.

    A head whose context is the reply begins anew with every reply. One whose context is the whole sequence also takes
    in the positions at which it says nothing, as in training; they wait here until it speaks next, and are then read
    at once.

    Args:
        model: Whose head speaks.
        batch_size: Rows, B.
    """

    def __init__(self, model: SpeechLM, batch_size: int) -> None:
        if model.head is None:
            raise ValueError("the model has no head, so it cannot speak; give SpeechLM(head=...) or choose a text mode")
        self.head, self.batch_size = model.head, batch_size
        self.whole_sequence = model.head.whole_sequence
        self._state = model.head.new_state(batch_size)
        self._heard: list[tuple[Tensor, Tensor, Tensor]] = []  # hidden states, text and mask of waiting positions

    def begin_reply(self) -> None:
        """Forget what the head does not carry over into another reply."""
        if not self.whole_sequence:
            self._state = self.head.new_state(self.batch_size)

    def begin(self, prefix: Prefix) -> None:
        """Go on behind a prefix, in one row."""
        self.listen(prefix.hidden, prefix.text)

    def listen(self, hidden: Tensor, text_embeds: Tensor, mask: Tensor | None = None) -> None:
        """Positions ``(B, L, D)`` from which nothing is said, their text ``(B, L, D)`` and padding ``(B, L)``."""
        if self.whole_sequence:
            if mask is None:
                mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            self._heard.append((hidden, text_embeds, mask))

    def say(self, hidden: Tensor, sample: Callable[[Tensor], Tensor], text_embeds: Tensor) -> Tensor:
        """The next group ``(B, k, Q)`` from a position ``(B, D)`` and its text ``(B, D)``; ``sample`` picks codes."""
        head = self.head
        if self._heard:
            waiting, text, mask = (torch.cat(parts, dim=1) for parts in zip(*self._heard, strict=True))
            self._heard.clear()
            read_silence(head, waiting, self._state, text, mask)
        return head.step(hidden, self._state, sample, text_embeds if head.needs_text else None)


def read_silence(
    head: SpeechHead,
    hidden: Tensor,
    state: Any,
    text_embeds: Tensor,
    mask: Tensor | None = None,
    row: int | None = None,
) -> None:
    """Let a head take in positions ``(B, L, D)`` at which it says nothing; see ``SpeechHead.read``."""
    group = (*hidden.shape[:2], head.group_size, head.num_codebooks)
    silence = torch.full(group, pad_code(head.codebook_size), device=hidden.device)
    of_slots = {} if row is None else {"row": row}
    head.read(hidden, silence, state, mask, text_embeds if head.needs_text else None, **of_slots)
