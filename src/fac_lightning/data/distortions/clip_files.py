"""Sound files of the user: noises, room impulse responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fac_lightning.resampling import resample

__all__ = ["ClipFiles"]

SUFFIXES = {".wav", ".flac", ".ogg"}
MAX_CACHED_SAMPLES = 50_000_000  # 200 MB


class ClipFiles:
    """Files to draw from, in order of their names, so that a draw means the same on every machine.

    Args:
        paths: A file, a folder (searched with all folders inside it), or several of these.

    Raises:
        FileNotFoundError: A path does not exist, or a folder holds no sound file.
    """

    def __init__(self, paths: str | Sequence[str]) -> None:
        self.files: list[Path] = []
        for path in map(Path, [paths] if isinstance(paths, str) else paths):
            found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not found:
                what = "holds no" if path.is_dir() else "does not exist; name a file or a folder of"
                raise FileNotFoundError(f"{path} {what} sound files ({', '.join(sorted(SUFFIXES))})")
            self.files += found
        self._read: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Samples ``(S,)`` float64 of one file at ``sample_rate`` Hz; the first channel of several.

        Raises:
            ValueError: The file is damaged or silent.
        """
        index = int(rng.integers(len(self.files)))
        if (index, sample_rate) not in self._read:
            if sum(map(len, self._read.values())) > MAX_CACHED_SAMPLES:
                self._read.clear()
            self._read[index, sample_rate] = _read(self.files[index], sample_rate)
        return self._read[index, sample_rate]


def _read(file: Path, sample_rate: int) -> np.ndarray:
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not samples[:, 0].any() or not np.isfinite(samples[:, 0]).all():
        raise ValueError(f"{file} is silent or not finite, so it distorts nothing; take it out of the folder")
    return resample(samples[:, 0], rate, sample_rate).astype(np.float64)
