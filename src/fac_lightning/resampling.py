"""From one sample rate to another."""

from __future__ import annotations

from math import gcd

import numpy as np

__all__ = ["resample"]


def resample(audio: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Samples ``(ceil(S * target_rate / source_rate),)`` float32 of ``(S,)``, polyphase filtered; rates in Hz."""
    audio = np.asarray(audio, dtype=np.float32)
    if source_rate == target_rate:
        return audio
    from scipy.signal import resample_poly

    common = gcd(source_rate, target_rate)
    return np.asarray(resample_poly(audio, target_rate // common, source_rate // common), dtype=np.float32)
