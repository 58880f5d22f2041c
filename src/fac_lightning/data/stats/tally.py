"""What one side of the dialogues holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from fac_lightning.data.dialogue import load_turn_codes, turn_span
from fac_lightning.data.stats.histogram import Histogram, growing_edges, whole_edges

__all__ = ["Tally", "count_edges", "second_edges"]

VOICES = ("voice", "speaker", "speaker_id", "voice_id")  # custom fields of turns and dialogues that name who speaks
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

    def add(self, cut: Any, index: int, tokens: int | None = None) -> float | None:
        """Count a turn.

        Args:
            cut: The dialogue.
            index: Which turn.
            tokens: Of its text, where that is known.

        Returns:
            Seconds of its speech; None where it has none.
        """
        supervision = cut.supervisions[index]
        self.turns += 1
        self.characters.add(len(supervision.text))
        if tokens is not None:
            self.tokens.add(tokens)
        span, stored = turn_span(cut, index), load_turn_codes(cut, index)
        if span is None and stored is None:
            return None
        if span is not None:
            seconds: float = span.count / span.recording.sampling_rate
        else:
            assert stored is not None
            seconds = stored.seconds
            self.codes[stored.tokenizer] += 1
        self.spoken += 1
        self.unwritten += not supervision.text.strip()
        self.seconds.add(seconds)
        if (voice := _voice(supervision.custom or {}, cut.custom or {})) is not None:
            self.voices[voice if voice in self.voices or len(self.voices) < MAX_NAMES else OTHERS] += 1
        return seconds

    def add_recording(self, recording: Any) -> None:
        """Count the recording of this side of a dialogue."""
        self.sample_rates[recording.sampling_rate] += 1
        self.containers[_container(recording.sources[0]) if recording.sources else "none"] += 1

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


def _voice(turn: Mapping[str, Any], dialogue: Mapping[str, Any]) -> str | None:
    """Who speaks, by the custom fields of the turn or else of its dialogue."""
    named = [custom[key] for custom in (turn, dialogue) for key in VOICES if isinstance(custom.get(key), str | int)]
    return str(named[0]) if named else None


def _container(source: Any) -> str:
    """How a recording is stored, as its source names it."""
    if source.type not in ("file", "url"):
        return str(source.type)
    suffix = PurePosixPath(str(source.source)).suffix.lower().lstrip(".")
    return suffix or str(source.type)
