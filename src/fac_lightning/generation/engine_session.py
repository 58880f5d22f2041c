"""A conversation of many turns over an engine: its keys and values wait with it between the turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from fac_lightning.generation.conversation import Conversation
from fac_lightning.generation.memory import HeadMemory
from fac_lightning.generation.requests import SpeechRequest
from fac_lightning.generation.row_memory import RowMemory
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.stepping import Decoded
from fac_lightning.slot_cache import CachedRow

__all__ = ["EngineSession"]


class EngineSession:
    """One conversation among many; made by ``SpeechEngine.session``. It says what ``Session`` would say.

    Between two turns it holds no slot: what it has seen is copied out when a reply is over and back when the next
    begins, and never computed again.

    Args:
        enqueue: Hands a request to the engine.
        conversation: Its turns.
        decoding: Sampling and the longest reply. Turn ``i`` draws from ``seed + i``.
        memory: What the head remembers from turn to turn; None where nothing is to be said.
    """

    def __init__(
        self,
        enqueue: Callable[[SpeechRequest], None],
        conversation: Conversation,
        decoding: Decoding,
        memory: HeadMemory | RowMemory | None,
    ) -> None:
        self._enqueue, self.conversation, self.decoding, self.memory = enqueue, conversation, decoding, memory
        self.seen: CachedRow | None = None  # by the backbone
        self._request: SpeechRequest | None = None  # under way

    @property
    def turns(self) -> int:
        """Answered so far."""
        return self.conversation.turns

    def submit(self, text: str | None = None, audio: Tensor | np.ndarray | None = None) -> SpeechRequest:
        """Say something; the answer comes with the engine's steps.

        Args:
            text: What the user writes.
            audio: What the user says, ``(S,)`` at ``model.geometry.sample_rate``; used when both are given.

        Raises:
            ValueError: Nothing is given, the model lacks a part for it, the engine takes no more, or the reply before
                is not over.
        """
        pieces, mode = self.conversation.ask(text, audio)
        if self._request is not None and not self._request.over:
            raise ValueError("the reply before is still being said: step() until it is over, or cancel() it")
        decoding = replace(self.decoding, seed=self.decoding.seed + self.turns)
        request = SpeechRequest(mode, decoding, self.conversation.row(pieces, mode), self, self.memory)
        self._enqueue(request)
        self._request = request
        return request

    def release(self, decoded: Decoded, seen: CachedRow) -> None:
        """The reply is over: what was said, and what the backbone has seen."""
        self.conversation.close(decoded)
        self.seen = seen
