"""System prompts that were computed once and are copied into every conversation that begins with them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fac_lightning.generation.prompt import prompt_batch, prompt_text
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.slot_cache import CachedRow, SlotCache
from fac_lightning.types import to_device

__all__ = ["Prefix", "Prefixes"]


@dataclass(eq=False)
class Prefix:
    """What model and head know behind a prefix of L positions."""

    seen: CachedRow
    hidden: Tensor  # (1, L, D)
    text: Tensor  # (1, L, D), text embeddings
    voice: Any = None  # what a head that reads the whole sequence has seen, once one speaks; see ``RowMemory``


class Prefixes:
    """Computes each prefix once; those not used for longest are forgotten.

    Args:
        model: The speech LLM, in eval mode.
        chat: Token ids of the marks.
        slots: Where a free row computes them.
        most: Prefixes that are kept.
    """

    def __init__(self, model: SpeechLM, chat: ChatFormat, slots: SlotCache, most: int = 16) -> None:
        self.model, self.chat, self.slots, self.most = model, chat, slots, most
        self._known: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def of(self, ids: list[int]) -> Prefix:
        """The prefix of text tokens ``ids``; needs a free slot."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = self._read(ids)
            if len(self._known) > self.most:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def forget(self) -> None:
        """Compute all anew when they are next asked for."""
        self._known.clear()

    def _read(self, ids: list[int]) -> Prefix:
        row = self.slots.join()
        try:
            batch = to_device(prompt_batch([[ids]], self.chat, self.model.geometry), self.slots.device)
            embeds = self.model.embed(batch)[None]
            hidden = self.model.backbone.step_slots(embeds, self.slots, row)
            return Prefix(self.slots.copied(row), hidden, prompt_text(self.model, batch)[None])
        finally:
            self.slots.leave(row)
