"""Voices of espeak-ng: formant synthesis, many speakers, very fast, plain to hear that it is a machine."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import numpy as np

from fac_lightning.synthesizers.audio import drawn_speed, from_int16
from fac_lightning.synthesizers.base import Synthesizer
from fac_lightning.synthesizers.worker import shared_worker

__all__ = ["EspeakSynthesizer"]


class EspeakSynthesizer(Synthesizer):
    """Speak with espeak-ng (https://github.com/espeak-ng/espeak-ng), always in another process.

    The program ``espeak-ng`` is used where it is on the PATH, else the shared library of the wheel
    ``espeakng_loader``.

    Args:
        voice: Language or accent, for example "en-us", "en-gb", "en-gb-scotland".
        variant: Speaker, for example "john" or "m7"; None is the voice as it is. Variants with breath ("f2", "f3")
            draw noise that no seed fixes: their samples repeat only nearly.
        rate: Words per minute, 80 to 450.
        pitch: 0 to 99.
        speed_jitter: Each seed draws its rate from ``rate * (1 -+ speed_jitter)``; else the seed changes nothing.
    """

    sample_rate = 22050

    def __init__(
        self,
        voice: str = "en-us",
        variant: str | None = None,
        rate: int = 155,
        pitch: int = 50,
        speed_jitter: float = 0.0,
    ) -> None:
        if not 80 <= rate <= 450:
            raise ValueError(f"rate must be between 80 and 450 words per minute, got {rate}")
        self.voice, self.rate, self.pitch, self.speed_jitter = voice, rate, pitch, speed_jitter
        self.full_voice = voice if variant is None else f"{voice}+{variant}"
        self.name = f"espeak/{self.full_voice}"
        self._worker = shared_worker("fac_lightning.synthesizers.espeak_worker")

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at 22.05 kHz."""
        rate = round(drawn_speed(self.rate, self.speed_jitter, seed))
        program = shutil.which("espeak-ng")
        if program is not None:
            command = [program, "-v", self.full_voice, "-s", str(rate), "-p", str(self.pitch), "--stdout", "--stdin"]
            done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
            if done.returncode != 0 or len(done.stdout) <= 44:
                raise RuntimeError(f"espeak-ng failed: {done.stderr.decode(errors='replace').strip()}")
            # The header of a wave file on a pipe holds no true length, so a reader of files stumbles over it.
            return from_int16(done.stdout[44 : 44 + (len(done.stdout) - 44) // 2 * 2])
        if importlib.util.find_spec("espeakng_loader") is None:
            raise ImportError(
                "espeak-ng is not here: install the program espeak-ng, or the library with "
                'pip install "fac-lightning[demo]"'
            )
        request = {"text": text, "voice": self.full_voice, "rate": rate, "pitch": self.pitch}
        return from_int16(self._worker.ask(request)[1])

    def close(self) -> None:
        """End the engine's process, which all voices of the engine share; the next sentence starts another."""
        self._worker.close()
