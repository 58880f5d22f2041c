"""Simple measures of how a voice speaks: pitch, its range, rate, level. Signal processing, no model.

Legend: S samples, F frames.
"""

from __future__ import annotations

import numpy as np

__all__ = ["level", "pitch_track", "sounding", "speaking_rate"]

FRAME, HOP = 0.04, 0.01  # seconds; two periods of the lowest voice fit a frame
LOWEST, HIGHEST = 60.0, 500.0  # Hz, of voices
SILENCE = 35.0  # dB below the loudest frame


def frames(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Overlapping frames ``(F, W)`` of a clip ``(S,)``, at least one; the last is filled with zeros."""
    width, hop = round(FRAME * sample_rate), round(HOP * sample_rate)
    count = max(1, -(-(len(audio) - width) // hop) + 1)
    padded = np.pad(np.asarray(audio, dtype=np.float64), (0, max(0, (count - 1) * hop + width - len(audio))))
    view: np.ndarray = np.lib.stride_tricks.sliding_window_view(padded, width)[::hop][:count]
    return view


def sounding(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Frames ``(F,)`` bool that are not silent: within 35 dB of the loudest one."""
    power = np.square(frames(audio, sample_rate)).mean(axis=1)
    loud: np.ndarray = power > power.max() * 10 ** (-SILENCE / 10)
    return loud


def level(audio: np.ndarray, sample_rate: int) -> float:
    """Mean power of the frames that sound, dB of full scale; minus infinity for silence."""
    heard = sounding(audio, sample_rate)
    if not heard.any():
        return float("-inf")
    return float(10 * np.log10(np.square(frames(audio, sample_rate)[heard]).mean()))


def speaking_rate(text: str, audio: np.ndarray, sample_rate: int) -> float:
    """Letters and digits of the text per second between the first and the last sound; 0 for silence."""
    heard = np.flatnonzero(sounding(audio, sample_rate))
    if not len(heard):
        return 0.0
    return sum(map(str.isalnum, text)) / float((heard[-1] - heard[0]) * HOP + FRAME)


def pitch_track(audio: np.ndarray, sample_rate: int, voiced: float = 0.6) -> np.ndarray:
    """Fundamental frequencies ``(V,)`` in Hz of the voiced frames, in time order.

    The autocorrelation of a frame over that of its window (P. Boersma, Accurate short-term analysis of the fundamental
    frequency and the harmonics-to-noise ratio of a sampled sound, 1993); of its peaks the first that is nearly as high
    as the highest, so that octaves below are not taken for it; its place between samples from a parabola.

    Args:
        audio: ``(S,)``.
        sample_rate: Hz.
        voiced: Least height of the peak, where 1 is a perfect repetition.
    """
    cut = frames(audio, sample_rate)
    cut = cut[sounding(audio, sample_rate)]
    shortest, longest = int(sample_rate / HIGHEST), int(sample_rate / LOWEST)
    window = np.hanning(cut.shape[1] + 2)[1:-1]
    size = 1 << int(np.ceil(np.log2(2 * cut.shape[1])))
    spectrum = np.square(np.abs(np.fft.rfft((cut - cut.mean(axis=1, keepdims=True)) * window, size)))
    of_window = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, size))))[: longest + 2]
    alike = np.fft.irfft(spectrum)[:, : longest + 2]
    alike = alike / np.maximum(alike[:, :1], 1e-12) / (of_window / of_window[0])  # (F, lags)
    left, here, right = alike[:, shortest - 1 : -2], alike[:, shortest:-1], alike[:, shortest + 1 :]
    peaks = np.where((here > left) & (here >= right), here, -np.inf)  # (F, lags from the shortest)
    highest = peaks.max(axis=1, initial=-np.inf)
    place = (peaks >= 0.9 * highest[:, None]).argmax(axis=1)
    kept = highest >= voiced
    rows = np.flatnonzero(kept)
    a, b, c = (side[rows, place[rows]] for side in (left, here, right))
    shift = 0.5 * (a - c) / np.minimum(a - 2 * b + c, -1e-12)
    found: np.ndarray = sample_rate / (shortest + place[rows] + shift)
    return found
