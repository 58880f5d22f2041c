"""Waveform -> continuous features."""

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.cached import CachedEncoder
from fac_lightning.encoders.fun_audio import FunAudioEncoder
from fac_lightning.encoders.log_mel import log_mel
from fac_lightning.encoders.mel import MelEncoder
from fac_lightning.encoders.tokenizer import TokenizerEncoder
from fac_lightning.encoders.whisper import WhisperEncoder
from fac_lightning.encoders.whisper_layers import WhisperLayers

__all__ = [
    "CachedEncoder",
    "FunAudioEncoder",
    "MelEncoder",
    "SpeechEncoder",
    "TokenizerEncoder",
    "WhisperEncoder",
    "WhisperLayers",
    "log_mel",
]
