"""Letters as tones: a voice without any engine, for tests and dry runs."""

from __future__ import annotations

import numpy as np

from fac_lightning.synthesizers.base import Synthesizer

__all__ = ["ToneSynthesizer"]


class ToneSynthesizer(Synthesizer):
    """Sound every letter as a short tone of its own, on a scale of quarter tones; other characters are silent.

    Two texts that differ in a letter sound different, two voices differ by their pitch, and ``seed`` moves the phase.

    Args:
        pitch: Frequency of the letter "a", Hz.
        letter_seconds: Length of a letter, seconds.
        sample_rate: Hz.
    """

    def __init__(self, pitch: float = 220.0, letter_seconds: float = 0.04, sample_rate: int = 16000) -> None:
        if pitch * 2 ** (42 / 24) >= sample_rate / 2:
            raise ValueError(f"pitch {pitch} Hz puts the highest letter above half of sample_rate {sample_rate}")
        self.pitch, self.letter_seconds, self.sample_rate = pitch, letter_seconds, sample_rate
        self.name = f"tone/{pitch:g}"

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Waveform ``(letters * letter_seconds * sample_rate,)``; digits continue the scale after "z"."""
        steps = np.array([_step(char) for char in text.lower()])
        samples = round(self.letter_seconds * self.sample_rate)
        frequency = np.where(steps < 0, 0.0, self.pitch * 2.0 ** (steps / 24.0))
        time = np.arange(samples) / self.sample_rate
        phase = np.random.default_rng(seed).uniform(0.1, 3.0)
        fade = np.minimum(1.0, np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (0.1 * samples + 1))
        tones = 0.3 * fade * np.sin(2 * np.pi * frequency[:, None] * time + phase) * (steps >= 0)[:, None]
        wave: np.ndarray = tones.reshape(-1).astype(np.float32)
        return wave


def _step(char: str) -> int:
    """Place of a character on the scale, -1 for silence."""
    if "a" <= char <= "z":
        return ord(char) - ord("a")
    return 26 + int(char) if char.isascii() and char.isdigit() else -1
