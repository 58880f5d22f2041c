"""Faster and slower speech."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range
from fac_lightning.resampling import resample

__all__ = ["Speed"]

STEPS = 100  # speeds are hundredths, so that the filter that resamples stays short


@dataclass(frozen=True)
class Speed(Distortion):
    """Play the clip faster or slower: tempo and pitch go together. ``ceil(S / factor)`` samples come out.

    Args:
        factor: Range of speeds, drawn in hundredths: above 1 is faster.
    """

    factor: tuple[float, float] = (0.9, 1.1)

    def __post_init__(self) -> None:
        """Refuse what is no speed."""
        object.__setattr__(self, "factor", check_range("factor", self.factor, 0.25, 4.0))

    @property
    def keeps_length(self) -> bool:
        """It does not."""
        return False

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip at another speed ``(ceil(S / factor),)``."""
        return resample(audio, round(rng.uniform(*self.factor) * STEPS), STEPS).astype(np.float64)
