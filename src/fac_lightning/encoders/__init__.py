"""Waveform -> continuous features."""

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.cached import CachedEncoder
from fac_lightning.encoders.fun_audio import FunAudioEncoder
from fac_lightning.encoders.fun_audio_tower import FunAudioTower
from fac_lightning.encoders.log_mel import log_mel
from fac_lightning.encoders.mel import MelEncoder
from fac_lightning.encoders.qwen2_audio import Qwen2AudioEncoder
from fac_lightning.encoders.tokenizer import TokenizerEncoder
from fac_lightning.encoders.w2v_bert import W2vBertEncoder
from fac_lightning.encoders.wav2vec import Wav2VecEncoder
from fac_lightning.encoders.whisper import WhisperEncoder
from fac_lightning.encoders.whisper_layers import WhisperLayers

__all__ = [
    "CachedEncoder",
    "FunAudioEncoder",
    "FunAudioTower",
    "MelEncoder",
    "Qwen2AudioEncoder",
    "SpeechEncoder",
    "TokenizerEncoder",
    "W2vBertEncoder",
    "Wav2VecEncoder",
    "WhisperEncoder",
    "WhisperLayers",
    "log_mel",
]
