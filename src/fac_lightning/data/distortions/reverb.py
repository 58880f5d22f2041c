"""Rooms that were measured: convolution with an impulse response."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fac_lightning.data.distortions.base import Distortion
from fac_lightning.data.distortions.clip_files import ClipFiles

__all__ = ["Reverb", "convolve_rir"]


def convolve_rir(audio: np.ndarray, rir: np.ndarray) -> np.ndarray:
    """Clip ``(S,)`` heard through a room's impulse response ``(K,)``.

    The strongest peak of the response, which is the direct path, stands at time 0, so that words stay where they are;
    what rings on behind the end is left out. The result has the power of the clip, however loud the response was
    recorded.
    """
    from scipy.signal import fftconvolve

    direct = int(np.abs(rir).argmax())
    wet: np.ndarray = fftconvolve(audio, rir)[direct : direct + len(audio)]
    power = np.mean(np.square(wet))
    return wet * np.sqrt(np.mean(np.square(audio)) / power) if power else wet


@dataclass(frozen=True)
class Reverb(Distortion):
    """Put the speaker into one of the rooms whose impulse responses you have.

    Args:
        rirs: Sound files of impulse responses, or folders of them.
    """

    rirs: str | list[str]
    _clips: ClipFiles = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the files."""
        object.__setattr__(self, "_clips", ClipFiles(self.rirs))

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Clip in a room ``(S,)``."""
        return convolve_rir(audio, self._clips.draw(sample_rate, rng))
