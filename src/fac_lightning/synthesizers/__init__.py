"""Text-to-speech engines that make data, each behind the contract ``Synthesizer``."""

from fac_lightning.synthesizers.audio import resample
from fac_lightning.synthesizers.base import Synthesizer, trim_silence
from fac_lightning.synthesizers.espeak import EspeakSynthesizer
from fac_lightning.synthesizers.flite import FliteSynthesizer
from fac_lightning.synthesizers.hibari import HibariSynthesizer
from fac_lightning.synthesizers.piper import PiperSynthesizer
from fac_lightning.synthesizers.tone import ToneSynthesizer

__all__ = [
    "EspeakSynthesizer",
    "FliteSynthesizer",
    "HibariSynthesizer",
    "PiperSynthesizer",
    "Synthesizer",
    "ToneSynthesizer",
    "resample",
    "trim_silence",
]
