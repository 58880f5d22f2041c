"""Noise out of numbers, for who has no recordings of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range
from fac_lightning.data.distortions.noise import add_noise

__all__ = ["ColoredNoise", "colored_noise"]


def colored_noise(num_samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise ``(num_samples,)`` whose power falls as ``1 / f ** exponent``: 0 white, 1 pink, 2 brown."""
    size = max(num_samples, 2)  # a single sample has no frequency but 0
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.arange(len(spectrum), dtype=np.float64)
    frequency[0] = np.inf  # no constant offset
    return np.fft.irfft(spectrum * frequency ** (-exponent / 2) if exponent else spectrum, size)[:num_samples]


@dataclass(frozen=True)
class ColoredNoise(Distortion):
    """Lay stationary noise under the clip, between a hiss and a rumble. A silent clip stays silent.

    Args:
        snr: Range of signal-to-noise ratios, dB.
        exponent: Range of spectral slopes: 0 is white, 1 pink, 2 brown.
    """

    snr: tuple[float, float] = (5.0, 20.0)
    exponent: tuple[float, float] = (0.0, 2.0)

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        object.__setattr__(self, "snr", check_range("snr", self.snr))
        object.__setattr__(self, "exponent", check_range("exponent", self.exponent))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip with noise ``(S,)``."""
        snr, exponent = rng.uniform(*self.snr), rng.uniform(*self.exponent)
        noise = colored_noise(len(audio), exponent, rng)
        return add_noise(audio, noise, snr) if audio.any() else audio
