"""Models: the slots joined."""

from fac_lightning.models.speech_lm import SpeechLM

__all__ = ["SpeechLM"]
