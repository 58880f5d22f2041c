"""The slot ``synthesizer``: other people's text-to-speech engines."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

__all__ = ["Synthesizer"]


class Synthesizer(ABC):
    """Speak a sentence in one voice; the same text and seed give the same samples."""

    name: str  # voice name stored with the data, for example "espeak/en-us+f3"
    sample_rate: int  # Hz of the waveforms given

    @abstractmethod
    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at ``sample_rate``."""
