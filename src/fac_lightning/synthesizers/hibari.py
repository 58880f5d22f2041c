"""Voices of hibari, a small neural engine whose weights are inside its wheel."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fac_lightning.synthesizers.audio import drawn_speed, resample
from fac_lightning.synthesizers.base import Synthesizer

__all__ = ["HibariSynthesizer"]


class HibariSynthesizer(Synthesizer):
    """Speak with hibari (https://pypi.org/project/hibari-tts), about 70 times real time on one thread.

    ``pitch`` makes further speakers of the one bundled voice: the engine speaks ``pitch`` times slower and the
    waveform is resampled to be ``pitch`` times shorter, so pitch and formants move together (a larger or a smaller
    vocal tract) while the duration stays.

    Args:
        voice: Name of a hibari voice; "heart" is in the wheel, others are downloaded by the engine.
        speed: Pace, 0.5 to 2.0.
        pitch: Factor on pitch and formants, 0.6 to 1.6; below 1 is deeper.
        speed_jitter: Each seed draws its pace from ``speed * (1 -+ speed_jitter)``.
    """

    sample_rate = 24000

    def __init__(self, voice: str = "heart", speed: float = 1.0, pitch: float = 1.0, speed_jitter: float = 0.0) -> None:
        if not 0.6 <= pitch <= 1.6:
            raise ValueError(f"pitch must be between 0.6 and 1.6 (beyond, speech is hard to follow), got {pitch}")
        slowest, fastest = speed * (1 - speed_jitter) / pitch, speed * (1 + speed_jitter) / pitch
        if slowest < 0.5 or fastest > 2.0:
            raise ValueError(
                f"speed {speed} with pitch {pitch} and speed_jitter {speed_jitter} asks the engine for a pace of "
                f"{slowest:.2f} to {fastest:.2f}; it keeps to 0.5 to 2.0"
            )
        self.voice, self.speed, self.pitch, self.speed_jitter = voice, speed, pitch, speed_jitter
        self.name = f"hibari/{voice}"
        if pitch != 1.0:
            self.name += f"-{pitch:g}"

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at 24 kHz."""
        speed = drawn_speed(self.speed, self.speed_jitter, seed)
        audio: np.ndarray = _engine(self.voice)(text, speed=speed / self.pitch, seed=seed)
        return resample(np.asarray(audio, dtype=np.float32), 1.0 / self.pitch)


@cache
def _engine(voice: str) -> Any:
    """One engine a process and voice: it keeps no state between sentences, so all pitches share it."""
    try:
        from hibari import Hibari
    except ImportError as error:
        raise ImportError('hibari is not installed: pip install "fac-lightning[demo]"') from error
    return Hibari(voice, threads=1)
