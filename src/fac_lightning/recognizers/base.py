"""The slot ``recognizer``: other people's speech-to-text engines, which filter data and judge results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

__all__ = ["Recognizer"]


class Recognizer(ABC):
    """Write down what is said."""

    sample_rate: int = 16000  # Hz of the waveforms taken

    @abstractmethod
    def __call__(self, audio: Sequence[np.ndarray]) -> list[str]:
        """One transcript per mono float32 waveform ``(S,)`` at ``sample_rate``; batched inside."""
