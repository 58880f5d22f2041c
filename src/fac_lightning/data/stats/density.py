"""Text against speech: which replies say more tokens than their speech has positions for.

Text and speech of a reply go side by side, a token and a group of codes at a position. The released Fun-Audio-Chat cuts
off what text is left when speech ends, without a word (the reply rule ``GroupEnd``); ``FrameEnd`` keeps it.
"""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from typing import Any

from fac_lightning.data.stats.histogram import Histogram, growing_edges

__all__ = ["DensestReplies", "Reply"]


@dataclass(frozen=True, order=True)
class Reply:
    """A spoken reply by its sizes, ordered by how dense it is."""

    density: float  # tokens / positions
    id: str  # of the dialogue
    turn: int  # place in it, from 0
    tokens: int  # of its text
    positions: int  # that its speech has, lead-in included
    seconds: float

    @property
    def lost(self) -> int:
        """Tokens that have no position."""
        return max(0, self.tokens - self.positions)


class DensestReplies:
    """Counts replies and keeps the densest.

    Args:
        kept: How many are kept.
    """

    def __init__(self, kept: int = 20) -> None:
        self.kept = kept
        self.replies = self.flagged = self.lost = 0
        self.rate = Histogram(growing_edges(0.1, 100.0))  # tokens per second
        self._heap: list[Reply] = []

    def add(self, dialogue: str, turn: int, tokens: int, positions: int, seconds: float) -> None:
        """Count a reply."""
        reply = Reply(tokens / positions, dialogue, turn, tokens, positions, seconds)
        self.replies += 1
        self.flagged += reply.lost > 0
        self.lost += reply.lost
        if seconds > 0:
            self.rate.add(tokens / seconds)
        if len(self._heap) < self.kept:
            heapq.heappush(self._heap, reply)
        else:
            heapq.heappushpop(self._heap, reply)

    @property
    def densest(self) -> list[Reply]:
        """The densest replies, the first most."""
        return sorted(self._heap, reverse=True)

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "replies": self.replies,
            "flagged": self.flagged,
            "lost_tokens": self.lost,
            "tokens_per_second": self.rate.to_record(),
            "densest": [{**asdict(reply), "lost": reply.lost} for reply in self.densest],
        }
