"""Telephones and small loudspeakers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range

__all__ = ["BandLimit", "limit_band"]

ORDER = 6


def limit_band(audio: np.ndarray, low: float, high: float, sample_rate: int) -> np.ndarray:
    """Clip ``(S,)`` between two frequencies in Hz: the magnitudes of Butterworth filters, without their delay."""
    size = 2 * len(audio)  # zeros behind the clip, so that its end does not ring into its start
    frequency = np.fft.rfftfreq(size, 1 / sample_rate)
    gain = 1 / np.sqrt(1 + (frequency / high) ** (2 * ORDER))
    if low > 0:
        rising = (frequency / low) ** ORDER
        gain *= rising / np.sqrt(1 + np.square(rising))
    return np.fft.irfft(np.fft.rfft(audio, size) * gain, size)[: len(audio)]


@dataclass(frozen=True)
class BandLimit(Distortion):
    """Leave a band of frequencies; by default about that of a telephone.

    Args:
        low: Range of the lower edge, Hz; 0 leaves the depths.
        high: Range of the upper edge, Hz.
    """

    low: tuple[float, float] = (200.0, 400.0)
    high: tuple[float, float] = (2500.0, 3800.0)

    def __post_init__(self) -> None:
        """Refuse what is no band."""
        object.__setattr__(self, "low", check_range("low", self.low, 0.0))
        object.__setattr__(self, "high", check_range("high", self.high, 1.0))
        if self.low[1] >= self.high[0]:
            raise ValueError(f"the lower edge {self.low} Hz must lie below the upper edge {self.high} Hz")

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip of a narrow band ``(S,)``."""
        return limit_band(audio, rng.uniform(*self.low), rng.uniform(*self.high), sample_rate)
