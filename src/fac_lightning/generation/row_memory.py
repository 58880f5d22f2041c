"""What the speech head remembers of one reply or conversation among many that share the head's slots.

Legend: L positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fac_lightning.generation.memory import read_silence
from fac_lightning.generation.prefix import Prefix
from fac_lightning.heads.base import SpeechHead

__all__ = ["RowMemory"]


class RowMemory:
    """What the head remembers of one row, which has a place in the head's slots only while it speaks.

    A head whose context is the reply begins anew with every place. One whose context is the whole sequence goes on
    behind what it has read; positions at which it says nothing wait here until it speaks next, and are then read at
    once, while the other rows stay where they are.

    Args:
        head: Says the codes.
        slots: What its ``new_slots`` gave, for all rows.
    """

    def __init__(self, head: SpeechHead, slots: Any) -> None:
        self.head, self.slots = head, slots
        self._seen: Any = None  # by the head, while it has no place
        self._heard: list[tuple[Tensor, Tensor]] = []  # hidden states and text of waiting positions

    def begin_reply(self) -> None:
        """Nothing yet: ``join`` forgets what the head does not carry over into another reply."""

    def begin(self, prefix: Prefix) -> None:
        """Go on behind a prefix, which the head reads once for all; needs a free place, and a memory that is fresh."""
        if not self.head.whole_sequence:
            return
        if prefix.voice is None:
            first = RowMemory(self.head, self.slots)
            first.listen(prefix.hidden, prefix.text)
            first.leave(first.join(), keep=True)
            prefix.voice = first._seen
        self._seen = prefix.voice

    def listen(self, hidden: Tensor, text_embeds: Tensor) -> None:
        """Positions ``(1, L, D)`` from which nothing is said, and their text ``(1, L, D)``."""
        if self.head.whole_sequence:
            self._heard.append((hidden, text_embeds))

    def join(self) -> int:
        """Take a place, behind the others, and read what waits; gives its row."""
        if not self.head.whole_sequence:
            return int(self.slots.join())
        row = int(self.slots.join(self._seen))
        if self._heard:
            try:
                hidden, text = (torch.cat(parts, dim=1) for parts in zip(*self._heard, strict=True))
                read_silence(self.head, hidden, self.slots, text, row=row)
            except Exception:
                self.slots.leave(row)
                raise
        self._seen, self._heard = None, []
        return row

    def leave(self, row: int, keep: bool) -> None:
        """Give the place back; what was read is kept where the conversation may ``keep`` on."""
        if keep and self.head.whole_sequence:
            self._seen = self.slots.copied(row)
        self.slots.leave(row)
