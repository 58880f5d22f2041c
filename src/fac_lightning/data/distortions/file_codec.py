"""Speech that was encoded and decoded, by what libsndfile writes and reads, in memory."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from fac_lightning.data.distortions.base import Distortion, fit_peak
from fac_lightning.resampling import resample

__all__ = ["FileCodec", "code_file"]

BLOCK = 16_000  # samples written at once: libsndfile's Vorbis writer crashes on minutes in one call
# An MP3 says in its first frame how many samples to leave out. At low bit rates that frame does not fit and is left
# out, and the samples that the encoder (576) and the decoder (529) put in front stay there.
MP3_DELAY = 576 + 529


def code_file(audio: np.ndarray, sample_rate: int, container: str, subtype: str, **options: Any) -> np.ndarray:
    """A clip ``(S,)``, written to a file in memory and read back: ``(S,)`` float32, at the same place in time.

    Args:
        audio: No louder than 1.
        sample_rate: Hz, one that the format has.
        container: libsndfile's name of the file's format.
        subtype: libsndfile's name of the encoding.
        options: Further arguments of ``soundfile.SoundFile``.

    Raises:
        ValueError: libsndfile gave fewer samples back.
    """
    import soundfile

    memory, samples = io.BytesIO(), np.asarray(audio, dtype=np.float32)
    with soundfile.SoundFile(memory, "w", sample_rate, 1, subtype, format=container, **options) as file:
        for start in range(0, len(samples), BLOCK):
            file.write(samples[start : start + BLOCK])
    memory.seek(0)
    decoded: np.ndarray = soundfile.read(memory, dtype="float32")[0]
    first = MP3_DELAY if container == "MP3" and len(decoded) > len(samples) else 0
    decoded = decoded[first : first + len(samples)]  # formats with blocks give whole ones back
    if len(decoded) < len(samples):
        raise ValueError(
            f"libsndfile {soundfile.__libsndfile_version__} gave {len(decoded)} of {len(samples)} samples back from "
            f"{container} {subtype} at {sample_rate} Hz; update soundfile, or leave this codec out"
        )
    return decoded


class FileCodec(Distortion):
    """Send the clip through an encoder and its decoder, at the lowest sample rate of the format that holds it.

    Length and place in time stay; where the format has only lower rates than the clip, what lies above them is lost.

    A codec of your own names a container and a subtype of ``soundfile.available_subtypes`` and the sample rates.
    """

    container: ClassVar[str]
    subtype: ClassVar[str]
    rates: ClassVar[tuple[int, ...]]  # Hz, ascending

    def __post_init__(self) -> None:
        """Refuse a format that the installed libsndfile does not have."""
        import soundfile

        if not soundfile.check_format(self.container, self.subtype):
            raise ValueError(
                f"{type(self).__name__} needs {self.container} {self.subtype}, which libsndfile "
                f"{soundfile.__libsndfile_version__} does not write; update soundfile"
            )

    @abstractmethod
    def options(self, sample_rate: int, rng: np.random.Generator) -> dict[str, Any]:
        """Arguments of ``soundfile.SoundFile`` that say how much is kept, at a rate of the format in Hz."""

    def distort(self, audio: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Decoded clip ``(S,)``."""
        rate = next((rate for rate in self.rates if rate >= sample_rate), self.rates[-1])
        options = self.options(rate, rng)
        coded = code_file(fit_peak(resample(audio, sample_rate, rate)), rate, self.container, self.subtype, **options)
        return resample(coded, rate, sample_rate)[: len(audio)].astype(np.float64)
