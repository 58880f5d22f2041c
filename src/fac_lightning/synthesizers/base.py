"""The slot ``synthesizer``: other people's text-to-speech engines."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

__all__ = ["Synthesizer", "trim_silence"]


class Synthesizer(ABC):
    """Speak a sentence in one voice; the same text and seed give the same samples.

    A voice can be pickled at any time, also after its first sentence: engines are loaded on the first call and are
    left out of the pickle, so that voices travel to worker processes cheaply.
    """

    name: str  # voice name stored with the data, for example "espeak/en-us+f3"
    sample_rate: int  # Hz of the waveforms given

    @abstractmethod
    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at ``sample_rate``."""


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
