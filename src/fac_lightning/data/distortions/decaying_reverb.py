"""Rooms out of numbers, for who has no impulse responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range
from fac_lightning.data.distortions.reverb import convolve_rir

__all__ = ["DecayingReverb", "decaying_rir"]


def decaying_rir(t60: float, direct: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Impulse response ``(K,)`` of a diffuse room: a direct path, then noise that decays exponentially.

    Source: the statistical model of J.-D. Polack, La transmission de l'energie sonore dans les salles (1988).

    Args:
        t60: Seconds in which the tail falls by 60 dB, which is also its length.
        direct: Energy of the direct path over that of the tail, dB.
        sample_rate: Hz.
        rng: Of the tail.
    """
    time = np.arange(1, max(2, round(t60 * sample_rate))) / sample_rate
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / t60)
    tail *= 10 ** (-direct / 20) / np.sqrt(np.sum(np.square(tail)))
    # the tail of a room with little direct sound must not hold a stronger path than the direct one
    return np.concatenate([[max(1.0, np.abs(tail).max())], tail])


@dataclass(frozen=True)
class DecayingReverb(Distortion):
    """Put the speaker into a diffuse room.

    Args:
        t60: Range of reverberation times, seconds.
        direct: Range of direct-to-reverberant ratios, dB.
    """

    t60: tuple[float, float] = (0.2, 0.8)
    direct: tuple[float, float] = (-3.0, 6.0)

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        object.__setattr__(self, "t60", check_range("t60", self.t60, 0.01, 20.0))
        object.__setattr__(self, "direct", check_range("direct", self.direct))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip in a room ``(S,)``."""
        t60, direct = rng.uniform(*self.t60), rng.uniform(*self.direct)
        return convolve_rir(audio, decaying_rir(t60, direct, sample_rate, rng))
