"""Small helpers on waveforms for evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["write_wav"]


def write_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write a mono waveform as 16-bit PCM, folders made as needed."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(np.asarray(audio, dtype=np.float32), -1.0, 1.0), sample_rate, subtype="PCM_16")
