"""What one side of the dialogues holds."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fac_lightning.data.stats.facts import TurnFacts
from fac_lightning.data.stats.histogram import Histogram, growing_edges, whole_edges

__all__ = ["Tally", "count_edges", "second_edges"]

MAX_NAMES = 1000  # distinct names that are counted one by one
OTHERS = "(others)"

second_edges = growing_edges(0.1, 3600.0)
count_edges = whole_edges(1_000_000)


class Tally:
    """Turns, speech, texts, recordings and voices of a side."""

    def __init__(self) -> None:
        self.turns = self.spoken = self.unwritten = 0
        self.seconds = Histogram(second_edges)
        self.characters, self.tokens = Histogram(count_edges, whole=True), Histogram(count_edges, whole=True)
        self.sample_rates: Counter[int] = Counter()
        self.containers: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.voices: Counter[str] = Counter()

    def add(self, turn: TurnFacts, tokens: int | None = None) -> None:
        """Count a turn.

        Args:
            turn: Of this side.
            tokens: Of its text, where that is known.
        """
        self.turns += 1
        self.characters.add(len(turn.text))
        if tokens is not None:
            self.tokens.add(tokens)
        if turn.codes is not None:
            self.codes[turn.codes] += 1
        if turn.seconds is None:
            return
        self.spoken += 1
        self.unwritten += not turn.text.strip()
        self.seconds.add(turn.seconds)
        if (voice := turn.voice) is not None:
            self.voices[voice if voice in self.voices or len(self.voices) < MAX_NAMES else OTHERS] += 1

    def add_recording(self, sample_rate: int, container: str) -> None:
        """Count the recording of this side of a dialogue: its rate in Hz, its kind of file."""
        self.sample_rates[sample_rate] += 1
        self.containers[container] += 1

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "turns": self.turns,
            "spoken": self.spoken,
            "spoken_without_text": self.unwritten,
            "hours": self.seconds.total / 3600,
            "sample_rates": {str(rate): n for rate, n in sorted(self.sample_rates.items())},
            "containers": dict(self.containers.most_common()),
            "codes": dict(self.codes.most_common()),
            "voices": dict(self.voices.most_common()),
            "seconds": self.seconds.to_record(),
            "characters": self.characters.to_record(),
            "tokens": self.tokens.to_record(),
        }
