"""Recorders that are driven too far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range

__all__ = ["Clipping", "clip_peaks"]


def clip_peaks(audio: np.ndarray, level: float) -> np.ndarray:
    """Clip ``(S,)`` cut off at ``level`` of its loudest sample, then as loud at its peak as before."""
    limit = level * np.abs(audio).max(initial=0.0)
    cut: np.ndarray = np.clip(audio, -limit, limit) / level
    return cut


@dataclass(frozen=True)
class Clipping(Distortion):
    """Cut the peaks off, as a microphone does that is spoken into too loudly.

    Args:
        level: Range of where it cuts, as a share of the loudest sample: the smaller, the harsher.
    """

    level: tuple[float, float] = (0.05, 0.3)

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        object.__setattr__(self, "level", check_range("level", self.level, 1e-4, 1.0))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Cut clip ``(S,)``."""
        return clip_peaks(audio, rng.uniform(*self.level))
