"""Sound in a tar: one range read, one decode."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np

from fac_lightning.data.audio import to_int16
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.storage import Storage
from fac_lightning.resampling import resample

__all__ = ["LastRecording", "TurnAudio"]


@dataclass(frozen=True)
class Sound:
    """One recording in a tar."""

    storage: Storage
    tar: str
    offset: int
    size: int
    rate: int  # Hz, as the manifest says
    num_samples: int
    name: str  # of the dialogue, for messages

    def read(self) -> np.ndarray:
        """Samples ``(S,)`` int16.

        Raises:
            BadData: It is no sound file, or not what the manifest says.
        """
        import soundfile

        where = f"{self.storage.path(self.tar)}, {self.name!r}"
        data = self.storage.read_range(self.tar, self.offset, self.size)
        if len(data) != self.size:
            raise bad_data("FAC-D11", where, f"{len(data)} bytes", f"{self.size} bytes")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                if file.samplerate != self.rate:
                    raise bad_data("FAC-A08", where, f"{file.samplerate} Hz", f"the manifest's {self.rate} Hz")
                if file.frames != self.num_samples:
                    told = f"{file.frames} samples where the manifest says {self.num_samples}"
                    raise bad_data("FAC-A09", where, told)
                samples: np.ndarray = file.read(dtype="int16")
        except soundfile.LibsndfileError as error:
            raise bad_data("FAC-A06", where, str(error)) from error
        if samples.shape != (self.num_samples,):
            told = f"shape {samples.shape} where the manifest says {self.num_samples} samples"
            raise bad_data("FAC-A06" if samples.ndim == 1 else "FAC-A13", where, told)
        return samples


@dataclass
class LastRecording:
    """The recording that was decoded last: the turns of a dialogue are read one after the other."""

    sound: Sound | None = None
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))

    def read(self, sound: Sound) -> np.ndarray:
        """Samples ``(S,)`` int16 of a recording."""
        if self.sound is not sound:
            self.samples = sound.read()
            self.sound = sound
        return self.samples


@dataclass(frozen=True)
class TurnAudio:
    """Reads one turn, as ``Clip.load``."""

    sound: Sound
    first: int  # samples, at the recording's rate
    count: int
    sample_rate: int  # Hz that the model hears
    last: LastRecording

    @property
    def num_samples(self) -> int:
        """Samples that come out."""
        return -(-self.count * self.sample_rate // self.sound.rate)

    def __call__(self) -> np.ndarray:
        """Samples ``(num_samples,)`` int16."""
        samples = self.last.read(self.sound)[self.first : self.first + self.count]
        if self.sample_rate == self.sound.rate:
            return samples
        return to_int16(resample(samples.astype(np.float32) / 32768, self.sound.rate, self.sample_rate))
