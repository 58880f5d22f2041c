"""Small tools that the voices share: changing the rate, varying the pace, reading PCM."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

__all__ = ["drawn_speed", "from_int16", "resample"]


def resample(audio: np.ndarray, ratio: float) -> np.ndarray:
    """Waveform ``(ceil(S * ratio),)`` of ``audio`` ``(S,)``, band limited; ``ratio`` = new rate / old rate."""
    from scipy.signal import resample_poly

    exact = Fraction(ratio).limit_denominator(1000)
    if exact <= 0:
        raise ValueError(f"ratio must be at least 0.001, got {ratio}")
    if exact == 1 or len(audio) == 0:
        return audio
    out: np.ndarray = resample_poly(audio, exact.numerator, exact.denominator)
    return out.astype(np.float32)


def drawn_speed(speed: float, jitter: float, seed: int) -> float:
    """``speed`` times a factor that ``seed`` draws from ``[1 - jitter, 1 + jitter]``."""
    return speed * (1.0 + jitter * float(np.random.default_rng(seed).uniform(-1.0, 1.0)))


def from_int16(data: bytes) -> np.ndarray:
    """Float32 samples in [-1, 1) of little-endian 16-bit PCM."""
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768.0
