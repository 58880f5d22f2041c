"""Codes -> waveform, for tokenizers whose codes have no decoder of their own."""

from fac_lightning.detokenizers.base import SpeechDetokenizer
from fac_lightning.detokenizers.cosyvoice import CosyVoice3Detokenizer
from fac_lightning.detokenizers.tone import ToneDetokenizer

__all__ = ["CosyVoice3Detokenizer", "SpeechDetokenizer", "ToneDetokenizer"]
