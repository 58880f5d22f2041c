"""Faster and slower speech."""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def settle(self, rng: np.random.Generator) -> Speed:
        """One speed of the range."""
        factor = self._steps(rng) / STEPS
        return replace(self, factor=(factor, factor))

    def num_samples(self, count: int) -> int:
        """``ceil(count / factor)`` of a settled speed."""
        if self.factor[0] != self.factor[1]:
            raise ValueError(f"a speed between {self.factor[0]:g} and {self.factor[1]:g} has no length yet; settle it")
        return -(-count * STEPS // round(self.factor[0] * STEPS))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip at another speed ``(ceil(S / factor),)``."""
        return resample(audio, self._steps(rng), STEPS).astype(np.float64)

    def _steps(self, rng: np.random.Generator) -> int:
        return round(rng.uniform(*self.factor) * STEPS)
