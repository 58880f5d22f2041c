"""Voices of flite, a small diphone and HTS engine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from fac_lightning.synthesizers.base import Synthesizer

__all__ = ["FliteSynthesizer"]


class FliteSynthesizer(Synthesizer):
    """Speak with the program ``flite`` (https://github.com/festvox/flite); the seed changes nothing.

    Args:
        voice: "slt" (US female), "rms" (US male), "awb" (Scottish male), or "kal16".
        stretch: Factor on durations; above 1 is slower.
    """

    sample_rate = 16000

    def __init__(self, voice: str = "slt", stretch: float = 1.0) -> None:
        if stretch <= 0:
            raise ValueError(f"stretch must be positive, got {stretch}")
        self.voice, self.stretch = voice, stretch
        self.name = f"flite/{voice}"

    def __call__(self, text: str, seed: int = 0) -> np.ndarray:
        """Mono float32 waveform ``(S,)`` at 16 kHz."""
        import soundfile

        program = shutil.which("flite")
        if program is None:
            raise RuntimeError("the program flite is not on the PATH; install it with your system's package manager")
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            command = [program, "-voice", self.voice, "--setf", f"duration_stretch={self.stretch}", "-t", text]
            done = subprocess.run([*command, "-o", str(wav)], capture_output=True, check=False)
            if done.returncode != 0 or not wav.exists():
                raise RuntimeError(f"flite failed: {done.stderr.decode(errors='replace').strip()}")
            audio, rate = soundfile.read(wav, dtype="float32")
        if rate != self.sample_rate:
            raise RuntimeError(f"voice {self.voice!r} speaks at {rate} Hz, not {self.sample_rate}; choose another")
        return np.asarray(audio)
