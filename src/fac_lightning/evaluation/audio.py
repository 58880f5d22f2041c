"""Small helpers on waveforms for evaluation."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np

__all__ = ["match_rate", "write_wav"]


def match_rate(audio: np.ndarray, sample_rate: int, target_rate: int) -> np.ndarray:
    """Waveform ``(S,)`` float32 at ``target_rate`` Hz, by polyphase filtering."""
    if sample_rate == target_rate:
        return np.asarray(audio, dtype=np.float32)
    from scipy.signal import resample_poly

    divisor = gcd(sample_rate, target_rate)
    resampled = resample_poly(np.asarray(audio, dtype=np.float32), target_rate // divisor, sample_rate // divisor)
    return np.ascontiguousarray(resampled, dtype=np.float32)


def write_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write a mono waveform as 16-bit PCM, folders made as needed."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(np.asarray(audio, dtype=np.float32), -1.0, 1.0), sample_rate, subtype="PCM_16")
