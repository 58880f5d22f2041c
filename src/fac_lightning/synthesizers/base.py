"""The slot ``synthesizer``: other people's text-to-speech engines."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

__all__ = ["Synthesizer"]


class Synthesizer(ABC):
    """Speak a sentence in one voice; the same text and seed give the same samples.

    A voice can be pickled at any time, also after its first sentence: engines are loaded on the first call and are
    left out of the pickle, so that voices travel to worker processes cheaply.
    """

    name: str  # voice name stored with the data, for example "espeak/en-us+f3"
    sample_rate: int  # Hz of the waveforms given

    @abstractmethod
    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at ``sample_rate``."""
