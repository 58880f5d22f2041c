"""Waveform -> continuous features."""

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.log_mel import log_mel
from fac_lightning.encoders.whisper import WhisperEncoder

__all__ = ["SpeechEncoder", "WhisperEncoder", "log_mel"]
