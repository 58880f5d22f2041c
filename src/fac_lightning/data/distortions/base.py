"""The contract of distortions: what the world does to speech on its way to a microphone and behind it."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

__all__ = ["PEAK", "Distortion", "check_range", "fit_peak", "sample_rng"]

PEAK = 32767 / 32768  # the loudest sample that 16 bits hold on both sides of zero


class Distortion(ABC):
    """Change one clip.

    Contract (``fac_lightning.testing.check_distortion``): float32 in and out, as many samples out as in unless
    ``keeps_length`` says otherwise; all chance comes out of ``rng``, so the same generator gives the same samples; the
    caller's array is left alone; no sample is cut off that the distortion does not mean to cut off: what would be
    louder than ``PEAK`` is scaled as a whole.

    Who must know beforehand how long a clip will be, as training does that lays out positions before it reads audio,
    asks in two steps: ``settle`` draws what the length depends on, and of its result ``num_samples`` tells the length.
    """

    @property
    def keeps_length(self) -> bool:
        """As many samples come out as go in."""
        return True

    def __call__(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Distort a clip.

        Args:
            audio: ``(S,)`` mono.
            sample_rate: Hz.
            rng: All chance; ``sample_rng`` makes one per clip.

        Returns:
            ``(S,)`` float32.

        Raises:
            ValueError: The clip is not mono or not finite.
        """
        audio = np.asarray(audio, dtype=np.float32)
        if audio.ndim != 1 or not np.isfinite(audio).all():
            raise ValueError(
                f"audio to distort must be finite mono samples (S,), got the shape {audio.shape}, finite: "
                f"{bool(np.isfinite(audio).all())}"
            )
        if not len(audio):
            return audio.copy()
        changed = self.distort(audio.astype(np.float64), sample_rate, rng)
        assert not self.keeps_length or changed.shape == audio.shape, type(self).__name__
        return fit_peak(changed).astype(np.float32)

    def settle(self, rng: np.random.Generator) -> Distortion:
        """This distortion with all drawn that the length depends on; what else is left to chance stays so.

        One that changes the length brings its own, together with ``num_samples``.
        """
        if not self.keeps_length:
            raise NotImplementedError(
                f"{type(self).__name__} changes the length of clips and does not tell to what; give it the methods "
                "settle and num_samples, as fac_lightning.data.distortions.Speed has them"
            )
        return self

    def num_samples(self, count: int) -> int:
        """Samples that come out of ``count`` samples; asked of what ``settle`` gave."""
        assert self.keeps_length, type(self).__name__
        return count

    @abstractmethod
    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Samples of a clip ``(S,)`` float64, at least one; they may be louder than ``PEAK`` and may be ``audio``."""


def fit_peak(audio: np.ndarray, peak: float = PEAK) -> np.ndarray:
    """The clip, scaled down as a whole where a sample is louder than ``peak``; ratios inside it stay as they are."""
    loudest = np.abs(audio).max(initial=0.0)
    return audio if loudest <= peak else audio * (peak / loudest)


def sample_rng(seed: int, name: str) -> np.random.Generator:
    """Chance that depends on a seed and on the name of a clip alone, not on what was distorted before it."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def check_range(
    name: str, bounds: Sequence[float], least: float = -np.inf, most: float = np.inf
) -> tuple[float, float]:
    """A range ``(low, high)``; the two may be equal.

    Raises:
        ValueError: It is none, or leaves ``[least, most]``.
    """
    values = tuple(float(value) for value in bounds)
    if len(values) != 2 or not least <= values[0] <= values[1] <= most:
        raise ValueError(
            f"{name} must be a range (low, high) with {least:g} <= low <= high <= {most:g}, got {list(bounds)}"
        )
    return values[0], values[1]
