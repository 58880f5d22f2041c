"""Noise recordings laid under speech."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fac_lightning.data.distortions.base import Distortion, check_range
from fac_lightning.data.distortions.clip_files import ClipFiles

__all__ = ["AdditiveNoise", "add_noise"]


def add_noise(audio: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Clip ``(S,)`` with ``noise`` ``(S,)`` so much below it, both by their mean power.

    Args:
        audio: The clip.
        noise: At any level.
        snr: Signal-to-noise ratio, dB.

    Raises:
        ValueError: One of the two is silent, so that no ratio is possible.
    """
    power, noise_power = np.mean(np.square(audio)), np.mean(np.square(noise))
    if not power or not noise_power:
        raise ValueError(
            f"a signal-to-noise ratio of {snr:g} dB needs sound on both sides; the powers are {power:g} and "
            f"{noise_power:g}"
        )
    mixed: np.ndarray = audio + noise * np.sqrt(power / noise_power / 10 ** (snr / 10))
    return mixed


@dataclass(frozen=True)
class AdditiveNoise(Distortion):
    """Lay a piece of a noise recording under the clip; a shorter recording starts again. A silent clip stays silent.

    Args:
        noises: Sound files or folders of them.
        snr: Range of signal-to-noise ratios, dB.
    """

    noises: str | list[str]
    snr: tuple[float, float] = (5.0, 20.0)
    _clips: ClipFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the files."""
        object.__setattr__(self, "snr", check_range("snr", self.snr))
        object.__setattr__(self, "_clips", ClipFiles(self.noises))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip with noise ``(S,)``."""
        noise = self._clips.draw(sample_rate, rng)
        snr = rng.uniform(*self.snr)
        # begins where there is sound: recordings may hold seconds of digital silence, which no gain makes a noise
        start = int(rng.choice(np.flatnonzero(noise)))
        piece = noise[(start + np.arange(len(audio))) % len(noise)]
        return add_noise(audio, piece, snr) if audio.any() else audio
