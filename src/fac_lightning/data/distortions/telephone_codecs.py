"""What telephones do to speech: 8000 samples a second, and few bits for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fac_lightning.data.distortions.file_codec import FileCodec

__all__ = ["ALawCodec", "GSMCodec", "MuLawCodec"]


class _TelephoneCodec(FileCodec):
    """A codec of one quality."""

    container: ClassVar[str] = "WAV"
    rates: ClassVar[tuple[int, ...]] = (8000,)

    def options(self, sample_rate: int, rng: np.random.Generator) -> dict[str, Any]:
        """Nothing is to be chosen."""
        return {}


@dataclass(frozen=True)
class MuLawCodec(_TelephoneCodec):
    """A telephone line of North America or Japan: G.711, 64 kbit/s, samples of 8 bits on a logarithmic scale.

    The line leaves 0 to 4 kHz; ``BandLimit`` before it in a ``Chain`` adds the handset.
    """

    subtype: ClassVar[str] = "ULAW"


@dataclass(frozen=True)
class ALawCodec(_TelephoneCodec):
    """A telephone line of the rest of the world: G.711 with the other logarithmic scale."""

    subtype: ClassVar[str] = "ALAW"


@dataclass(frozen=True)
class GSMCodec(_TelephoneCodec):
    """A mobile phone of the first digital generation: GSM 06.10 full rate, 13 kbit/s."""

    subtype: ClassVar[str] = "GSM610"
