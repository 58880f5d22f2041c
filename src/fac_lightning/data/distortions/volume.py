"""Near and far microphones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range

__all__ = ["Volume"]


@dataclass(frozen=True)
class Volume(Distortion):
    """Make the clip louder or softer, never louder than a sample can be.

    Args:
        gain: Range of gains, dB.
    """

    gain: tuple[float, float] = (-20.0, 6.0)

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        object.__setattr__(self, "gain", check_range("gain", self.gain))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip at another level ``(S,)``."""
        return audio * 10 ** (rng.uniform(*self.gain) / 20)
