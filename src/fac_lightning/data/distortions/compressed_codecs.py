"""What voice messages, calls over the internet and small files do to speech: lossy codecs at low rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fac_lightning.data.distortions.base import check_range
from fac_lightning.data.distortions.file_codec import FileCodec

__all__ = ["MP3Codec", "OpusCodec", "VorbisCodec"]

OPUS_BITRATES = (6_000, 256_000)  # bit/s, from the most to the least compression that libsndfile sets


@dataclass(frozen=True)
class OpusCodec(FileCodec):
    """A call or a voice message: Opus, as browsers and messengers send it.

    Args:
        bitrate: Range of bit rates, bit/s; 6000 is barely intelligible, 24000 a good call.
    """

    container: ClassVar[str] = "OGG"
    subtype: ClassVar[str] = "OPUS"
    rates: ClassVar[tuple[int, ...]] = (8000, 12000, 16000, 24000, 48000)

    bitrate: tuple[float, float] = (6_000.0, 24_000.0)

    def __post_init__(self) -> None:
        """Refuse what is no bit rate of it."""
        super().__post_init__()
        object.__setattr__(self, "bitrate", check_range("bitrate", self.bitrate, *OPUS_BITRATES))

    def options(self, sample_rate: int, rng: np.random.Generator) -> dict[str, Any]:
        """A bit rate of the range."""
        return {"compression_level": _level(rng.uniform(*self.bitrate), *OPUS_BITRATES)}


@dataclass(frozen=True)
class MP3Codec(FileCodec):
    """A small MP3 file at a constant bit rate.

    Args:
        bitrate: Range of bit rates, bit/s. MP3 has steps of them, and at each sample rate a least and a greatest one:
            the nearest is taken (8000 to 160000 at 16 and 24 kHz).
    """

    container: ClassVar[str] = "MP3"
    subtype: ClassVar[str] = "MPEG_LAYER_III"
    rates: ClassVar[tuple[int, ...]] = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

    bitrate: tuple[float, float] = (16_000.0, 48_000.0)

    def __post_init__(self) -> None:
        """Refuse what is no bit rate of it."""
        super().__post_init__()
        object.__setattr__(self, "bitrate", check_range("bitrate", self.bitrate, 8_000, 320_000))

    def options(self, sample_rate: int, rng: np.random.Generator) -> dict[str, Any]:
        """A bit rate of the range."""
        bounds = (32_000, 320_000) if sample_rate >= 32_000 else (8_000, 160_000 if sample_rate >= 16_000 else 64_000)
        # libsndfile refuses full compression, and reaches the least bit rate well before it
        level = min(0.999, _level(rng.uniform(*self.bitrate), *bounds))
        return {"compression_level": level, "bitrate_mode": "CONSTANT"}


@dataclass(frozen=True)
class VorbisCodec(FileCodec):
    """A small Ogg Vorbis file.

    Args:
        quality: Range of Vorbis's qualities, from 0 (about 50 kbit/s at 16 kHz) to 1.
    """

    container: ClassVar[str] = "OGG"
    subtype: ClassVar[str] = "VORBIS"
    rates: ClassVar[tuple[int, ...]] = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

    quality: tuple[float, float] = (0.0, 0.3)

    def __post_init__(self) -> None:
        """Refuse what is no quality."""
        super().__post_init__()
        object.__setattr__(self, "quality", check_range("quality", self.quality, 0.0, 1.0))

    def options(self, sample_rate: int, rng: np.random.Generator) -> dict[str, Any]:
        """A quality of the range."""
        return {"compression_level": 1 - rng.uniform(*self.quality)}


def _level(bitrate: float, least: int, greatest: int) -> float:
    """Compression level of libsndfile, 0 to 1, for a bit rate or the nearest between two bounds."""
    return (greatest - min(max(bitrate, least), greatest)) / (greatest - least)
