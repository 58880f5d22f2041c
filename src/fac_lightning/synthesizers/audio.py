"""Small waveform tools that every voice needs: trimming silence, changing the rate, varying the pace."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

__all__ = ["drawn_speed", "from_int16", "resample", "trim_silence"]


def trim_silence(audio: np.ndarray, sample_rate: int, keep: float = 0.05, threshold_db: float = -40.0) -> np.ndarray:
    """Cut leading and trailing silence.

    Args:
        audio: Mono waveform ``(S,)``.
        sample_rate: Hz.
        keep: Seconds of silence left on either side.
        threshold_db: A 10 ms frame is silent below this level, relative to the loudest frame.

    Returns:
        Waveform ``(S',)`` with ``S' <= S``; all of ``audio`` where nothing is louder than silence.
    """
    hop = max(1, sample_rate // 100)
    num_frames = len(audio) // hop
    if num_frames == 0:
        return audio
    power = np.square(audio[: num_frames * hop].astype(np.float64)).reshape(num_frames, hop).mean(1)
    loud = np.flatnonzero(power > power.max() * 10 ** (threshold_db / 10))
    if loud.size == 0:
        return audio
    margin = round(keep * sample_rate)
    return audio[max(0, loud[0] * hop - margin) : (loud[-1] + 1) * hop + margin]


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
